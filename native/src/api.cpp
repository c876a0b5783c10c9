// The C API: checks arguments, and turns exceptions into a status and a sentence.
#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "errors.h"
#include "rare_trt.h"
#include "segmenter.h"
#include "text.h"
#include "version.h"

struct rare_trt_segmenter {
  rare_trt::Segmenter segmenter;
};

namespace rare_trt {
namespace {

// The sentence on this thread's last call that failed, unless there was no memory to store one.
thread_local std::string last_error;
thread_local bool out_of_memory = false;

// The flags of the last labels that this thread wrote, one per line.
thread_local std::string last_flags;

void remember(const char* sentence) noexcept {
  out_of_memory = false;
  try {
    last_error = sentence;
  } catch (...) {
    out_of_memory = true;
  }
}

rare_trt_status status_of(const std::exception& error) {
  if (dynamic_cast<const ArgumentError*>(&error) != nullptr) return RARE_TRT_ERROR_ARGUMENT;
  if (dynamic_cast<const ScanError*>(&error) != nullptr) return RARE_TRT_ERROR_SCAN;
  if (dynamic_cast<const PackageError*>(&error) != nullptr) return RARE_TRT_ERROR_PACKAGE;
  if (dynamic_cast<const BackendError*>(&error) != nullptr) return RARE_TRT_ERROR_BACKEND;
  return RARE_TRT_ERROR_INTERNAL;
}

// Calls `work` and returns the status that its exceptions stand for. None leaves the library.
template <class Work>
rare_trt_status run_guarded(const Work& work) noexcept {
  try {
    work();
    return RARE_TRT_OK;
  } catch (const std::bad_alloc&) {
    out_of_memory = true;
    return RARE_TRT_ERROR_MEMORY;
  } catch (const std::exception& error) {
    remember(error.what());
    return status_of(error);
  } catch (...) {
    remember("an unknown exception was thrown; please report it");
    return RARE_TRT_ERROR_INTERNAL;
  }
}

void check_not_null(const void* argument, const char* name) {
  if (argument == nullptr) {
    throw ArgumentError(text(name, " is NULL; expected an address: pass one"));
  }
}

// The size of a struct in headers before its last field was added; of those that never grew,
// today's.
template <class Struct>
constexpr std::size_t kFirstSize = sizeof(Struct);
template <>
constexpr std::size_t kFirstSize<rare_trt_request> = offsetof(rare_trt_request, at_count);
template <>
constexpr std::size_t kFirstSize<rare_trt_report> = offsetof(rare_trt_report, disputed_voxels);

template <class Struct>
void check_size(const Struct& value, const char* name) {
  if (value.size == sizeof(Struct) || value.size == kFirstSize<Struct>) return;
  throw ArgumentError(text(name, "->size is ", value.size, "; expected ", sizeof(Struct),
                           ": set it to sizeof, and use a library as new as the header"));
}

Backend backend(std::int32_t value) {
  switch (value) {
    case RARE_TRT_BACKEND_AUTO:
      return Backend::automatic;
    case RARE_TRT_BACKEND_OPENVINO:
      return Backend::openvino;
    case RARE_TRT_BACKEND_TENSORRT:
      return Backend::tensorrt;
    default:
      throw ArgumentError(
          text("options->backend is ", value, "; expected a rare_trt_backend: choose one"));
  }
}

DType dtype(std::int32_t value) {
  static_assert(RARE_TRT_UINT8 == 1 && RARE_TRT_FLOAT64 == 10 && static_cast<int>(DType::f64) == 9);
  if (value < RARE_TRT_UINT8 || value > RARE_TRT_FLOAT64) {
    throw ArgumentError(text("scan->dtype is ", value, "; expected a rare_trt_dtype: choose one"));
  }
  return static_cast<DType>(value - 1);
}

// The product of two sizes that are at least 1. Throws ArgumentError where it overflows.
std::int64_t times(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  if (a < 1 || b < 1 || __builtin_mul_overflow(a, b, &product)) {
    throw ArgumentError(text("scan->shape or channels make ", a, " x ", b,
                             " voxels; expected positive sizes that fit in memory: correct them"));
  }
  return product;
}

// Strides in bytes of an array without gaps, i fastest; the last is that of the channels.
std::array<std::int64_t, 4> dense_strides(const Shape& shape, std::int64_t channels,
                                          std::int64_t size) {
  std::array<std::int64_t, 4> strides = {size, 0, 0, 0};
  for (std::size_t axis = 0; axis < 3; ++axis)
    strides[axis + 1] = times(strides[axis], shape[axis]);
  times(strides[3], channels);
  return strides;
}

// Bytes from the first to the last voxel of an axis. Throws ArgumentError where they overflow.
std::int64_t extent_bytes(std::int64_t stride, std::int64_t count) {
  std::int64_t bytes = 0;
  // A quarter of the type's range, so that the sum over four axes cannot overflow.
  constexpr auto limit = std::numeric_limits<std::int64_t>::max() / 4;
  if (__builtin_mul_overflow(stride, count - 1, &bytes) || bytes > limit || bytes < -limit) {
    throw ArgumentError(
        text("a stride of ", stride, " bytes over ", count,
             " voxels exceeds the address space; expected strides in bytes: correct them"));
  }
  return std::abs(bytes);
}

Voxels voxels(const rare_trt_scan& scan) {
  Voxels found{};
  found.data = static_cast<const std::byte*>(scan.voxels);
  found.dtype = dtype(scan.dtype);
  std::copy_n(scan.shape, 3, found.shape.begin());
  found.channels = scan.channels;
  const auto size =
      with_type(found.dtype, [](auto value) { return static_cast<std::int64_t>(sizeof value); });
  auto strides = dense_strides(found.shape, found.channels, size);
  if (std::any_of(scan.strides, scan.strides + 4, [](auto stride) { return stride != 0; })) {
    std::copy_n(scan.strides, 4, strides.begin());
  }
  std::copy_n(strides.begin(), 3, found.strides.begin());
  found.channel_stride = strides[3];
  const std::array<std::int64_t, 4> counts = {found.shape[0], found.shape[1], found.shape[2],
                                              found.channels};
  for (std::size_t axis = 0; axis < 4; ++axis) {
    extent_bytes(strides[axis], counts[axis]);
    // A stride of 0 repeats slices or channels: it was forgotten.
    if (strides[axis] == 0 && counts[axis] > 1) {
      throw ArgumentError(text("scan->strides are ", strides[0], ", ", strides[1], ", ", strides[2],
                               ", ", strides[3],
                               "; expected none of 0 where there is more than one voxel "
                               "or channel, or all of them for dense voxels: correct them"));
    }
  }
  return found;
}

// Throws ArgumentError where two voxels share a byte.
void check_no_overlap(const Shape& shape, const Strides& strides) {
  std::array<std::size_t, 3> axes = {0, 1, 2};
  std::sort(axes.begin(), axes.end(), [&](auto a, auto b) {
    return extent_bytes(strides[a], 2) < extent_bytes(strides[b], 2);
  });
  std::int64_t taken = 0;
  for (const auto axis : axes) {
    if (shape[axis] == 1) continue;
    if (extent_bytes(strides[axis], 2) <= taken) {
      throw ArgumentError(text("label_strides are ", strides[0], ", ", strides[1], ", ", strides[2],
                               "; expected strides with which no two voxels share a byte: correct "
                               "them"));
    }
    taken += extent_bytes(strides[axis], shape[axis]);
  }
}

Labels labels(const rare_trt_scan& scan, std::uint8_t* data, const std::int64_t* strides) {
  Labels found{data, {}, {}};
  std::copy_n(scan.shape, 3, found.shape.begin());
  std::copy_n(dense_strides(found.shape, 1, 1).begin(), 3, found.strides.begin());
  if (strides != nullptr) std::copy_n(strides, 3, found.strides.begin());
  check_no_overlap(found.shape, found.strides);
  return found;
}

Affine affine(const rare_trt_scan& scan) {
  Affine found;
  for (int row = 0; row < 4; ++row) {
    for (int column = 0; column < 4; ++column) found(row, column) = scan.affine[4 * row + column];
  }
  if (!(found.row(3) == Eigen::RowVector4d(0, 0, 0, 1))) {
    throw ScanError(
        "the affine's last row is not 0 0 0 1; expected rows of a 4x4 matrix: correct it");
  }
  return found;
}

Request request_of(const rare_trt_request* from) {
  Request found;
  if (from == nullptr) return found;
  check_size(*from, "request");
  if (from->route != nullptr) found.route = *from->route;
  const bool counts = from->size == sizeof *from;
  const std::size_t count = counts && from->at_count != 0 ? from->at_count : 1;
  if (from->at_mm == nullptr) {
    if (counts && from->at_count != 0) {
      throw ArgumentError(text("request->at_mm is NULL, with an at_count of ", from->at_count,
                               "; expected the address of its points: pass them"));
    }
    return found;
  }
  for (const double* point = from->at_mm; point != from->at_mm + 3 * count; point += 3) {
    found.points_mm.push_back({point[0], point[1], point[2]});
  }
  return found;
}

void copy(const Triple& from, double (&to)[3]) { std::copy(from.begin(), from.end(), to); }

template <std::size_t size>
void copy(const std::string& from, char (&to)[size]) {
  const std::size_t count = std::min(from.size(), size - 1);
  std::copy_n(from.begin(), count, to);
  to[count] = '\0';
}

rare_trt_report report_of(const RouteDecision& decision) {
  rare_trt_report report{};
  report.size = sizeof report;
  report.route = decision.route;
  report.next_route = decision.next_route.value_or(-1);
  report.forced = decision.forced;
  report.resampled = decision.resampled();
  copy(decision.spacing_mm, report.spacing_mm);
  report.effective_spacing_mm = decision.effective_spacing_mm;
  copy(decision.working_spacing_mm, report.working_spacing_mm);
  copy(decision.factors, report.factors);
  report.distance = decision.spacing_ratio;
  report.next_distance = decision.next_spacing_ratio;
  return report;
}

rare_trt_report report_of(const Report& from) {
  rare_trt_report report = report_of(from.route);
  copy(from.backend, report.backend);
  copy(from.arithmetic, report.arithmetic);
  report.touches_edge = from.touches_edge;
  report.tiles = from.tiles;
  std::copy(from.volumes_mm3.begin(), from.volumes_mm3.end(), report.volumes_mm3);
  report.prepare_ms = from.timings.prepare;
  report.plan_ms = from.timings.plan;
  report.load_ms = from.timings.load;
  report.inputs_ms = from.timings.inputs;
  report.graph_ms = from.timings.graph;
  report.labels_ms = from.timings.labels;
  report.total_ms = from.timings.total;
  report.disputed_voxels = from.disputed_voxels;
  return report;
}

// Copies `found` to the caller's report, of which an older header has fewer fields.
void copy(rare_trt_report found, rare_trt_report& to) {
  found.size = to.size;
  std::memcpy(&to, &found, found.size);
}

void open(const char* folder, const rare_trt_options* options, rare_trt_segmenter** segmenter) {
  check_not_null(segmenter, "segmenter");
  *segmenter = nullptr;
  check_not_null(folder, "folder");
  rare_trt_options chosen{};
  if (options != nullptr) {
    check_size(*options, "options");
    chosen = *options;
  }
  const Warn warn = [callback = chosen.on_warning,
                     user_data = chosen.user_data](const std::string& sentence) {
    if (callback != nullptr) callback(user_data, sentence.c_str());
  };
  auto opened = std::unique_ptr<rare_trt_segmenter>(
      new rare_trt_segmenter{{open_package(std::filesystem::u8path(folder)),
                              backend(chosen.backend), chosen.gpu_memory_limit, warn}});
  if (chosen.preload != 0) opened->segmenter.preload();
  *segmenter = opened.release();
}

void segment(rare_trt_segmenter* segmenter, const rare_trt_scan* scan,
             const rare_trt_request* request, std::uint8_t* data, const std::int64_t* strides,
             rare_trt_report* report) {
  check_not_null(segmenter, "segmenter");
  check_not_null(scan, "scan");
  check_size(*scan, "scan");
  check_not_null(scan->voxels, "scan->voxels");
  check_not_null(data, "labels");
  if (report != nullptr) check_size(*report, "report");
  const Voxels from = voxels(*scan);
  const Labels to = labels(*scan, data, strides);
  Report found{};
  last_flags.clear();
  segmenter->segmenter.segment(from, Grid(from.shape, affine(*scan)), request_of(request), to,
                               found);
  for (const std::string& flag : found.label_flags) last_flags += flag + "\n";
  if (report != nullptr) copy(report_of(found), *report);
}

void decide_route(const rare_trt_segmenter* segmenter, const double* spacing_mm,
                  const std::int32_t* route, rare_trt_report* report) {
  check_not_null(segmenter, "segmenter");
  check_not_null(spacing_mm, "spacing_mm");
  check_not_null(report, "report");
  check_size(*report, "report");
  std::optional<int> forced;
  if (route != nullptr) forced = *route;
  const Triple spacing = {spacing_mm[0], spacing_mm[1], spacing_mm[2]};
  copy(report_of(segmenter->segmenter.choose(spacing, forced)), *report);
}

const std::vector<std::string>& label_names(const rare_trt_segmenter& segmenter) {
  return segmenter.segmenter.manifest().model.labels;
}

}  // namespace
}  // namespace rare_trt

const char* rare_trt_version(void) { return rare_trt::kVersion; }

rare_trt_status rare_trt_open(const char* folder, const rare_trt_options* options,
                              rare_trt_segmenter** segmenter) {
  return rare_trt::run_guarded([&] { rare_trt::open(folder, options, segmenter); });
}

void rare_trt_close(rare_trt_segmenter* segmenter) { delete segmenter; }

int32_t rare_trt_channel_count(const rare_trt_segmenter* segmenter) {
  if (segmenter == nullptr) return 0;
  return static_cast<int32_t>(segmenter->segmenter.manifest().model.channels.size());
}

int32_t rare_trt_label_count(const rare_trt_segmenter* segmenter) {
  if (segmenter == nullptr) return 0;
  return static_cast<int32_t>(rare_trt::label_names(*segmenter).size());
}

const char* rare_trt_label_name(const rare_trt_segmenter* segmenter, int32_t label) {
  if (label < 0 || label >= rare_trt_label_count(segmenter)) return nullptr;
  return rare_trt::label_names(*segmenter)[static_cast<std::size_t>(label)].c_str();
}

rare_trt_status rare_trt_choose_route(const rare_trt_segmenter* segmenter, const double* spacing_mm,
                                      const int32_t* route, rare_trt_report* report) {
  return rare_trt::run_guarded(
      [&] { rare_trt::decide_route(segmenter, spacing_mm, route, report); });
}

rare_trt_status rare_trt_segment(rare_trt_segmenter* segmenter, const rare_trt_scan* scan,
                                 const rare_trt_request* request, uint8_t* labels,
                                 const int64_t* label_strides, rare_trt_report* report) {
  return rare_trt::run_guarded(
      [&] { rare_trt::segment(segmenter, scan, request, labels, label_strides, report); });
}

const char* rare_trt_last_flags(void) { return rare_trt::last_flags.c_str(); }

const char* rare_trt_last_error(void) {
  if (rare_trt::out_of_memory) return "no memory is left: free some";
  return rare_trt::last_error.c_str();
}
