# The installed files suffice: a project finds them with find_package and with pkg-config, and runs.
#   cmake -D BUILD=... -D CONSUMER=... -D PACKAGE=... -D WORK=... [-D PKG_CONFIG=...] [-D CPACK=...]
#         [-D DPKG_DEB=...] -P install.cmake
file(REMOVE_RECURSE ${WORK})

function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
run(${CMAKE_COMMAND} -S ${CONSUMER} -B ${WORK}/consumer -D CMAKE_PREFIX_PATH=${WORK}/prefix)
run(${CMAKE_COMMAND} --build ${WORK}/consumer)
run(${WORK}/consumer/consumer ${PACKAGE})

# Nothing depends on the virtual environment that OpenVINO was found in.
file(GLOB library ${WORK}/prefix/*/librare_trt.so)
file(GET_RUNTIME_DEPENDENCIES LIBRARIES ${library} RESOLVED_DEPENDENCIES_VAR needed)
if("${needed}" MATCHES "site-packages")
  message(FATAL_ERROR "the installed library needs ${needed}")
endif()

file(GLOB_RECURSE pc ${WORK}/prefix/*/rare_trt.pc)
get_filename_component(libraries ${pc} DIRECTORY)
get_filename_component(libraries ${libraries} DIRECTORY)
if(PKG_CONFIG)
  set(ENV{PKG_CONFIG_PATH} ${libraries}/pkgconfig)
  execute_process(COMMAND ${PKG_CONFIG} --cflags --libs rare_trt OUTPUT_VARIABLE flags
                  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags UNIX_COMMAND "${flags}")
  run(cc ${CONSUMER}/consumer.c -o ${WORK}/by_pkg_config ${flags})
  run(${CMAKE_COMMAND} -E env LD_LIBRARY_PATH=${libraries} ${WORK}/by_pkg_config ${PACKAGE})
endif()

# The Debian package, unpacked elsewhere, runs the same program.
if(CPACK AND DPKG_DEB)
  run(${CPACK} -G DEB --config ${BUILD}/CPackConfig.cmake -B ${WORK}/deb)
  file(GLOB deb ${WORK}/deb/*.deb)
  run(${DPKG_DEB} --info ${deb})
  run(${DPKG_DEB} --extract ${deb} ${WORK}/unpacked)
  file(GLOB_RECURSE installed ${WORK}/unpacked/*/librare_trt.so)
  get_filename_component(libraries ${installed} DIRECTORY)
  file(REMOVE_RECURSE ${WORK}/prefix)
  run(${CMAKE_COMMAND} -E env LD_LIBRARY_PATH=${libraries} ${WORK}/consumer/consumer ${PACKAGE})
endif()
