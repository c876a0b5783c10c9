# The library exports exactly the functions that the header declares.
#   cmake -D NM=nm -D LIBRARY=librare_trt.so -D HEADER=rare_trt.h -P symbols.cmake
execute_process(COMMAND ${NM} -D --defined-only ${LIBRARY} OUTPUT_VARIABLE symbols
                COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n ]+\n" exported "${symbols}")
string(REPLACE "\n" "" exported "${exported}")

file(READ ${HEADER} header)
string(REGEX MATCHALL "rare_trt_[a-z_]+\\(" declared "${header}")
string(REPLACE "(" "" declared "${declared}")
list(REMOVE_DUPLICATES declared)

list(SORT exported)
list(SORT declared)
if(NOT exported STREQUAL declared)
  message(FATAL_ERROR "exported: ${exported}\ndeclared: ${declared}")
endif()
message("exported: ${exported}")
