# Installs the library, moves the installed tree, and builds a consumer against it, once by find_package and
# once by pkg-config.
#
#   cmake -D KIND=static|shared -D SOURCE=… -D BUILD=… -D WORK=… -D CXX=… -D BUILD_TYPE=… -P run.cmake
#
# BUILD is the build tree to install from; a shared library is built first, in a tree of its own.

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  message("${output}")
  if(NOT status EQUAL 0)
    string(REPLACE ";" " " command "${ARGV}")
    message(FATAL_ERROR "status ${status}: ${command}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

function(expect_greeting)
  if(NOT output MATCHES "consumer: memory size: 1 bytes")
    message(FATAL_ERROR "the consumer printed something else")
  endif()
endfunction()

set(install "${WORK}/${KIND}-installed")
set(moved "${WORK}/${KIND}-moved")
set(consumer "${WORK}/${KIND}-consumer")
file(REMOVE_RECURSE "${install}" "${moved}" "${consumer}")
file(MAKE_DIRECTORY "${consumer}")

if(KIND STREQUAL "shared")
  set(BUILD "${WORK}/shared-build")
  run(${CMAKE_COMMAND} -S "${SOURCE}" -B "${BUILD}" -G Ninja "-DCMAKE_CXX_COMPILER=${CXX}"
    "-DCMAKE_BUILD_TYPE=${BUILD_TYPE}" -DBUILD_SHARED_LIBS=ON -DVMM_BUILD_TESTS=OFF -DVMM_BUILD_EXAMPLES=OFF)
  run(${CMAKE_COMMAND} --build "${BUILD}")
endif()
run(${CMAKE_COMMAND} --install "${BUILD}" --prefix "${install}")
file(RENAME "${install}" "${moved}")

run(${CMAKE_COMMAND} -S "${SOURCE}/tests/package/consumer" -B "${consumer}" -G Ninja
  "-DCMAKE_CXX_COMPILER=${CXX}" "-DCMAKE_BUILD_TYPE=${BUILD_TYPE}" "-DCMAKE_PREFIX_PATH=${moved}"
  -DCMAKE_CXX_STANDARD=20)
run(${CMAKE_COMMAND} --build "${consumer}")
run("${consumer}/consumer")
expect_greeting()

file(GLOB_RECURSE pc_file "${moved}/*/vmm.pc")
get_filename_component(pc_dir "${pc_file}" DIRECTORY)
get_filename_component(lib_dir "${pc_dir}" DIRECTORY)
set(static_flag)
if(KIND STREQUAL "static")
  set(static_flag --static)
endif()
set(ENV{PKG_CONFIG_PATH} "${pc_dir}")
set(ENV{LD_LIBRARY_PATH} "${lib_dir}")
run(pkg-config --cflags --libs ${static_flag} "vmm >= 0.1")
string(STRIP "${output}" flags)
separate_arguments(flags UNIX_COMMAND "${flags}")
run("${CXX}" -std=c++20 "${SOURCE}/tests/package/consumer/main.cpp" -o "${consumer}/by-pkg-config" ${flags})
run("${consumer}/by-pkg-config")
expect_greeting()
