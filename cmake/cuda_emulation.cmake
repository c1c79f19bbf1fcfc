# elwise_emulated: the library with its CUDA backend compiled as C++ for emulated GPUs (tests/support/cuda). A .cu file
# is compiled through a file that includes it, so that a build with nvcc can have both.

file(GLOB emulated_sources RELATIVE ${PROJECT_SOURCE_DIR} CONFIGURE_DEPENDS cuda/*.cu)
set(emulated_units)
foreach(source IN LISTS emulated_sources)
  cmake_path(GET source STEM name)
  set(unit ${PROJECT_BINARY_DIR}/emulated/${name}.cpp)
  file(CONFIGURE OUTPUT ${unit} CONTENT "#include \"${source}\"\n" @ONLY)
  list(APPEND emulated_units ${unit})
endforeach()
file(GLOB emulation CONFIGURE_DEPENDS cuda/*.cpp tests/support/cuda/*.cpp)
set(leak_listener ${PROJECT_SOURCE_DIR}/tests/support/cuda/leak_listener.cpp)  # a part of each test program
list(REMOVE_ITEM emulation ${leak_listener})

add_library(elwise_emulated STATIC EXCLUDE_FROM_ALL ${sources} $<TARGET_OBJECTS:elwise_cpu_kernels> ${emulated_units}
            ${emulation})
elwise_set_flags(elwise_emulated)
target_compile_definitions(elwise_emulated PUBLIC ELWISE_BUILT_WITH_CUDA)
target_include_directories(elwise_emulated BEFORE PUBLIC ${PROJECT_SOURCE_DIR}/tests/support/cuda/include)
target_include_directories(elwise_emulated PUBLIC ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/include)
target_link_libraries(elwise_emulated PRIVATE DNNL::dnnl hwy::hwy ${elwise_threads} nlohmann_json::nlohmann_json)
target_compile_options(elwise_emulated PUBLIC -Wno-unknown-pragmas)  # nvcc's "#pragma unroll"
set_source_files_properties(${emulated_units} PROPERTIES COMPILE_OPTIONS "-O2;-Wno-conversion")
# It runs where it is built: there fmaf() is an instruction, and not a call that takes a third of the time.
target_compile_options(elwise_emulated PRIVATE -march=native -ffp-contract=off)
if(ELWISE_PARALLEL_STD_THREAD)
  target_compile_definitions(elwise_emulated PRIVATE ELWISE_PARALLEL_STD_THREAD)
endif()

# The tests of these folders run once more, on an emulated GPU: `ctest -L emulation`.
add_library(elwise_emulated_test_support STATIC EXCLUDE_FROM_ALL ${support_sources})
elwise_set_flags(elwise_emulated_test_support)
target_link_libraries(elwise_emulated_test_support PUBLIC elwise_emulated hwy::hwy doctest::doctest)
target_compile_definitions(elwise_emulated_test_support PUBLIC ELWISE_SOURCE_DIR="${PROJECT_SOURCE_DIR}")

set(ELWISE_EMULATION_MODES lazy-mixed
    CACHE STRING "How tests of ops and models run on emulated GPUs: streams (eager, lazy) and thread order (forward, reverse, shuffled, or mixed: each kernel in one of the three)")
foreach(folder ops models cuda)
  set(modes ${ELWISE_EMULATION_MODES})
  if(folder STREQUAL "cuda")  # the runtime itself, in both; the others use one stream, where lazy work is the harder case
    set(modes eager-mixed lazy-mixed)
  endif()
  file(GLOB test_sources CONFIGURE_DEPENDS tests/${folder}/*.cpp)
  set(test_program elwise_${folder}_emulation_tests)
  add_executable(${test_program} ${test_sources} ${leak_listener})
  elwise_set_flags(${test_program})
  target_link_libraries(${test_program} PRIVATE elwise_emulated_test_support)
  set_target_properties(${test_program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests)
  foreach(source IN LISTS test_sources)
    cmake_path(GET source FILENAME file)
    string(REGEX REPLACE "(_test)?\\.cpp$" "" name ${file})
    foreach(mode IN LISTS modes)
      string(REPLACE "-" ";" parts ${mode})
      list(GET parts 0 streams)
      list(GET parts 1 order)
      set(test emulation.${folder}.${name}.${mode})
      add_test(NAME ${test} COMMAND ${test_program} --source-file=*/${folder}/${file})
      set_tests_properties(${test} PROPERTIES LABELS emulation TIMEOUT 900 FAIL_REGULAR_EXPRESSION "test cases: +0 "
        ENVIRONMENT "${test_environment};ELWISE_TEST_DEVICE=cuda;ELWISE_EMULATION_STREAMS=${streams};ELWISE_EMULATION_ORDER=${order}")
    endforeach()
  endforeach()
endforeach()

# train_bert_cost for an emulated GPU, which its tests run. The tools' own code is the same for every device.
if(ELWISE_BUILD_TOOLS)
  add_executable(train_bert_cost_emulated tools/train_bert_cost.cpp)
  elwise_set_flags(train_bert_cost_emulated)
  target_link_libraries(train_bert_cost_emulated PRIVATE $<TARGET_FILE:elwise_tools> elwise_emulated DNNL::dnnl fmt::fmt
                                                         CLI11::CLI11 nlohmann_json::nlohmann_json)
  set_target_properties(train_bert_cost_emulated PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests)
  add_dependencies(train_bert_cost_emulated elwise_tools)
  add_dependencies(elwise_cuda_emulation_tests train_bert_cost_emulated)
  target_compile_definitions(elwise_cuda_emulation_tests PRIVATE
    ELWISE_EMULATED_TRAIN_BERT_COST="${PROJECT_BINARY_DIR}/tests/train_bert_cost_emulated")
endif()

# kernel_traffic counts the bytes that kernels ask of device memory, for tools/kernel_report.py. Of code that it compiles
# with -fsanitize=thread g++ has every access announced; tests/support/cuda/traffic answers instead of ThreadSanitizer.
if(ELWISE_BUILD_TOOLS AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT CMAKE_CXX_FLAGS MATCHES "-fsanitize")
  # Loops stay loops: a call of memcpy would not be announced.
  set(announce_accesses -fsanitize=thread -fno-tree-loop-distribute-patterns)
  add_library(elwise_announcing_kernels OBJECT EXCLUDE_FROM_ALL ${emulated_units})
  elwise_set_flags(elwise_announcing_kernels)
  target_compile_options(elwise_announcing_kernels PRIVATE ${announce_accesses})
  target_link_libraries(elwise_announcing_kernels PRIVATE elwise_emulated)

  set(traffic tests/support/cuda/traffic)
  add_executable(kernel_traffic EXCLUDE_FROM_ALL ${traffic}/kernel_traffic.cpp ${traffic}/traffic_cases.cpp
                 ${traffic}/access_counter.cpp ${traffic}/kernel_names.cpp $<TARGET_OBJECTS:elwise_announcing_kernels>)
  elwise_set_flags(kernel_traffic)
  target_link_libraries(kernel_traffic PRIVATE $<TARGET_FILE:elwise_tools> elwise_emulated fmt::fmt CLI11::CLI11
                                               nlohmann_json::nlohmann_json)
  add_dependencies(kernel_traffic elwise_tools)
  set_target_properties(kernel_traffic PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests)

  add_executable(elwise_traffic_tests tests/cuda/traffic/traffic_test.cpp ${traffic}/access_counter.cpp
                                      ${traffic}/kernel_names.cpp)
  elwise_set_flags(elwise_traffic_tests)
  set_source_files_properties(tests/cuda/traffic/traffic_test.cpp PROPERTIES COMPILE_OPTIONS "-O2;${announce_accesses}")
  target_link_libraries(elwise_traffic_tests PRIVATE elwise_emulated_test_support)
  set_target_properties(elwise_traffic_tests PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests)
  add_test(NAME emulation.traffic COMMAND elwise_traffic_tests)
  set_tests_properties(emulation.traffic PROPERTIES LABELS emulation TIMEOUT 900 ENVIRONMENT "${test_environment}"
                                                    FAIL_REGULAR_EXPRESSION "test cases: +0 ")
endif()
