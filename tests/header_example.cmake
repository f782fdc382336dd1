# What a component's header says of itself is true.

# vmm_add_header_example(<target> <header>): makes <name>_example.inc of the code in the header's
# @file paragraph, for a test to include in its body.
function(vmm_add_header_example target header)
  get_filename_component(name "${header}" NAME_WE)
  set(source "${PROJECT_SOURCE_DIR}/include/vmm/${header}")
  set(output "${CMAKE_CURRENT_BINARY_DIR}/header_examples/${name}_example.inc")
  add_custom_command(OUTPUT "${output}"
    COMMAND sh "${PROJECT_SOURCE_DIR}/tests/header_example.sh" "${source}" "${output}"
    DEPENDS "${source}" "${PROJECT_SOURCE_DIR}/tests/header_example.sh"
    VERBATIM)
  target_sources(${target} PRIVATE "${output}")
  target_include_directories(${target} PRIVATE "${CMAKE_CURRENT_BINARY_DIR}/header_examples")
endfunction()

# vmm_add_includes_test(<header>): including it pulls in those headers of ours that it names.
function(vmm_add_includes_test header)
  add_test(NAME includes.${header}
    COMMAND sh "${PROJECT_SOURCE_DIR}/tests/header_includes.sh"
      "${CMAKE_CXX_COMPILER}" "${PROJECT_SOURCE_DIR}/include" "${header}")
  set_tests_properties(includes.${header} PROPERTIES LABELS unit TIMEOUT 60)
endfunction()
