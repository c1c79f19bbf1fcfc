# Runs at `cmake --install`, with source_dir, binary_dir, headers (the public ones, relative to source_dir) and
# include_dir set. Copies them, and every header that they include, to include_dir/elwise with
# `#include "core/x.h"` rewritten to `#include "elwise/core/x.h"`: a consumer's own core/x.h cannot collide.

cmake_minimum_required(VERSION 3.25)

set(staging_dir ${binary_dir}/install_include)
file(REMOVE_RECURSE ${staging_dir})

function(stage_header from to)
  file(READ ${from} text)
  string(REGEX REPLACE "(#include \")((core|autograd|ops|nn|models)/)" "\\1elwise/\\2" text "${text}")
  file(WRITE ${staging_dir}/elwise/${to} "${text}")
endfunction()

stage_header(${binary_dir}/include/elwise/elwise.h elwise.h)
set(waiting ${headers})
set(staged)
while(waiting)
  list(POP_FRONT waiting header)
  if(header IN_LIST staged)
    continue()
  endif()
  list(APPEND staged ${header})
  stage_header(${source_dir}/${header} ${header})
  file(STRINGS ${source_dir}/${header} includes REGEX "^#include \"")
  list(TRANSFORM includes REPLACE "^#include \"([^\"]+)\".*" "\\1")
  list(APPEND waiting ${includes})
endwhile()

file(INSTALL ${staging_dir}/elwise DESTINATION ${include_dir})
