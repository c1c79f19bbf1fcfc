# Installs the build in BUILD_DIR to a scratch prefix, moves that, and builds and runs the program of this folder
# against it. Set: BUILD_DIR, CONFIG, GENERATOR, CXX, CXX_FLAGS, INCLUDE_DIR (relative to the prefix).

cmake_minimum_required(VERSION 3.25)
set(scratch ${BUILD_DIR}/install_test)
set(prefix ${scratch}/moved)
file(REMOVE_RECURSE ${scratch})
file(MAKE_DIRECTORY ${scratch})

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output
                  WORKING_DIRECTORY ${scratch})
  if(NOT result EQUAL 0)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "${command}\nended with ${result}:\n${output}")
  endif()
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --config ${CONFIG} --prefix ${scratch}/installed)
file(RENAME ${scratch}/installed ${prefix})

foreach(header elwise.h core/tensor.h core/error.h)
  if(NOT EXISTS ${prefix}/${INCLUDE_DIR}/elwise/${header})
    message(FATAL_ERROR "elwise/${header} is not installed")
  endif()
endforeach()
# Programs are installed where they are built; train_bert_cost finds its script beside itself, wherever that is.
file(GLOB program ${prefix}/*/train_bert_cost)
if(program)
  file(GLOB plot_script ${prefix}/share/elwise/plot_cost.py)
  if(NOT plot_script)
    message(FATAL_ERROR "share/elwise/plot_cost.py is not installed")
  endif()
  file(WRITE ${plot_script} "raise SystemExit('the installed script ran')\n")
  execute_process(COMMAND ${program} --sweep memory --seq-len 8 --quiet --plot ${scratch}/figures
                  ERROR_VARIABLE output OUTPUT_QUIET)
  if(NOT output MATCHES "the installed script ran; the measurements are in")
    message(FATAL_ERROR "train_bert_cost did not run its installed script: ${output}")
  endif()
endif()
file(GLOB_RECURSE headers ${prefix}/${INCLUDE_DIR}/*.h)
foreach(header IN LISTS headers)
  file(STRINGS ${header} strays REGEX "#include \"")
  list(FILTER strays EXCLUDE REGEX "#include \"elwise/")
  if(strays)
    message(FATAL_ERROR "${header} includes what a consumer may define: ${strays}")
  endif()
endforeach()

run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${scratch}/build -G ${GENERATOR} -D CMAKE_BUILD_TYPE=${CONFIG}
    -D CMAKE_CXX_COMPILER=${CXX} -D CMAKE_CXX_FLAGS=${CXX_FLAGS} -D CMAKE_PREFIX_PATH=${prefix})
run(${CMAKE_COMMAND} --build ${scratch}/build --config ${CONFIG})
find_program(app app PATHS ${scratch}/build ${scratch}/build/${CONFIG} NO_DEFAULT_PATH REQUIRED)
run(${app})
