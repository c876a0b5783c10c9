# Finds the dependencies, and lists everything that is missing at once.
set(missing "")

# rare_trt_need(FOUND_VARIABLE "name" "how to install it")
macro(rare_trt_need found what how)
  if(NOT ${found})
    string(APPEND missing "\n  ${what}: ${how}")
  endif()
endmacro()

find_package(nlohmann_json 3.10 QUIET)
rare_trt_need(nlohmann_json_FOUND "nlohmann-json 3.10" "apt-get install nlohmann-json3-dev")
find_package(valijson QUIET)
rare_trt_need(valijson_FOUND "valijson" "apt-get install libvalijson-dev")
find_package(Eigen3 3.3 QUIET NO_MODULE)
rare_trt_need(Eigen3_FOUND "Eigen 3.3" "apt-get install libeigen3-dev")
find_package(OpenSSL QUIET COMPONENTS Crypto)
rare_trt_need(OPENSSL_FOUND "OpenSSL" "apt-get install libssl-dev")
find_package(ZLIB QUIET)
rare_trt_need(ZLIB_FOUND "zlib" "apt-get install zlib1g-dev")
find_package(Threads REQUIRED)
if(BUILD_TESTING)
  find_package(doctest QUIET)
  rare_trt_need(doctest_FOUND "doctest, for the tests" "apt-get install doctest-dev, or pass -DBUILD_TESTING=OFF")
endif()

# OpenVINO's headers and libraries are in its wheel, a dependency of rare-trt for Python. The module is
# not imported, because importing it opens a network connection.
# README installs it into .venv; an activated environment and -DPython3_EXECUTABLE go first.
if(NOT DEFINED Python3_EXECUTABLE AND NOT DEFINED ENV{VIRTUAL_ENV}
   AND EXISTS ${PROJECT_SOURCE_DIR}/.venv/bin/python)
  set(Python3_EXECUTABLE .venv/bin/python)
endif()
if(DEFINED Python3_EXECUTABLE)
  # CMake ignores relative paths. A link stays a link: an environment's Python is one.
  get_filename_component(Python3_EXECUTABLE "${Python3_EXECUTABLE}" ABSOLUTE BASE_DIR ${PROJECT_SOURCE_DIR})
endif()
find_package(Python3 QUIET COMPONENTS Interpreter)
set(openvino_wheel "")
if(Python3_FOUND)
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -c "import importlib.util as u; s = u.find_spec('openvino'); print(list(s.submodule_search_locations)[0] if s else '')"
    OUTPUT_VARIABLE openvino_wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
# Without a version: OpenVINO declares releases of another year incompatible.
find_package(OpenVINO QUIET COMPONENTS Runtime HINTS "${openvino_wheel}/cmake")
if(OpenVINO_FOUND AND OpenVINO_VERSION VERSION_LESS 2025.0)
  set(OpenVINO_FOUND FALSE)
endif()
rare_trt_need(OpenVINO_FOUND "OpenVINO 2025.0 or later"
              "python3 -m pip install ., and name that Python with -DPython3_EXECUTABLE=...")

if(missing)
  message(FATAL_ERROR "rare_trt cannot be built, these are missing:${missing}")
endif()
message(STATUS "OpenVINO ${OpenVINO_VERSION}: ${OpenVINO_DIR}")

# TensorRT 10.3 to 11.x and CUDA's driver are loaded at run time: only their headers are needed.
find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h
          PATH_SUFFIXES include DOC "Folder of TensorRT's headers")
find_path(CUDA_INCLUDE_DIR cuda.h
          PATHS /usr/local/cuda PATH_SUFFIXES include DOC "Folder of CUDA's headers")
set(RARE_TRT_WITH_TENSORRT FALSE)
if(TensorRT_INCLUDE_DIR AND CUDA_INCLUDE_DIR)
  set(RARE_TRT_WITH_TENSORRT TRUE)
  message(STATUS "TensorRT: ${TensorRT_INCLUDE_DIR}, CUDA: ${CUDA_INCLUDE_DIR}")
else()
  message(STATUS "TensorRT: built without it, its headers or CUDA's were not found")
endif()
