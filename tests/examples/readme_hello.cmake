# The README's program is examples/vmm-hello.cpp to the letter.
file(READ "${ROOT}/examples/vmm-hello.cpp" program)
file(READ "${ROOT}/README.md" readme)
string(REGEX REPLACE "^// SPDX[^\n]*\n+" "" program "${program}")
string(FIND "${readme}" "${program}" found)
if(found EQUAL -1)
  message(FATAL_ERROR "README.md does not show examples/vmm-hello.cpp as it is")
endif()
