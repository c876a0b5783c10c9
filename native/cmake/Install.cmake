# The library, its header, and the files for find_package and pkg-config. Where OpenVINO was found in a
# Python wheel, the parts that are used are installed beside the library, because the wheel is deleted
# with its virtual environment.
include(CMakePackageConfigHelpers)

set(private ${CMAKE_INSTALL_LIBDIR}/rare-trt)
set(documents ${CMAKE_INSTALL_DATADIR}/doc/rare-trt)
install(TARGETS rare_trt EXPORT rare_trt)
install(FILES include/rare_trt.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/NOTICE examples/segment.c
        DESTINATION ${documents})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/rare_trt/packages/hippocampus.rare
        DESTINATION ${CMAKE_INSTALL_DATADIR}/rare-trt/packages)

if(openvino_wheel AND OpenVINO_DIR STREQUAL "${openvino_wheel}/cmake")
  # The runtime, the CPU plug-in, the readers of graphs and compiled models, and the threading library.
  file(GLOB parts ${openvino_wheel}/libs/libopenvino.so.* ${openvino_wheel}/libs/libopenvino_*_cpu_plugin.so
       ${openvino_wheel}/libs/libopenvino_onnx_frontend.so.* ${openvino_wheel}/libs/libopenvino_ir_frontend.so.*
       ${openvino_wheel}/libs/libtbb*.so.* ${openvino_wheel}/libs/libhwloc.so.*)
  install(PROGRAMS ${parts} DESTINATION ${private})
  file(GLOB licences ${openvino_wheel}/../openvino-*.dist-info/licenses)
  install(DIRECTORY ${licences}/ DESTINATION ${documents}/openvino)
  set_target_properties(rare_trt PROPERTIES INSTALL_RPATH "$ORIGIN/rare-trt")
endif()

install(EXPORT rare_trt NAMESPACE rare_trt:: FILE rare_trtTargets.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/rare_trt)
configure_package_config_file(cmake/rare_trtConfig.cmake.in rare_trtConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/rare_trt)
write_basic_package_version_file(rare_trtConfigVersion.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/rare_trtConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/rare_trtConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/rare_trt)
file(RELATIVE_PATH RARE_TRT_PC_INCLUDE ${CMAKE_INSTALL_FULL_LIBDIR} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(cmake/rare_trt.pc.in rare_trt.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/rare_trt.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME librare-trt)
set(CPACK_PACKAGE_CONTACT "the rare-trt authors")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION
    "C library and hippocampus package. Research use only: not a medical device.")
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS "${openvino_wheel}/libs")
# gzip: much of the content is compressed already.
set(CPACK_DEBIAN_COMPRESSION_TYPE gzip)
include(CPack)
