// The C API: arguments checked, exceptions turned into a status and a sentence.
#include <algorithm>
#include <cstdlib>
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

// Of this thread's last call that failed. Empty with a status other than success: there was no
// memory left to say more.
thread_local std::string last_error;
thread_local bool out_of_memory = false;

void remember(const char* sentence) noexcept {
  out_of_memory = false;
  try {
    last_error = sentence;
  } catch (...) {
    out_of_memory = true;
  }
}

// What `work` comes to at the border, which no exception crosses.
template <class Work>
rare_trt_status guarded(const Work& work) noexcept {
  try {
    work();
    return RARE_TRT_OK;
  } catch (const ArgumentError& error) {
    remember(error.what());
    return RARE_TRT_ERROR_ARGUMENT;
  } catch (const ScanError& error) {
    remember(error.what());
    return RARE_TRT_ERROR_SCAN;
  } catch (const PackageError& error) {
    remember(error.what());
    return RARE_TRT_ERROR_PACKAGE;
  } catch (const BackendError& error) {
    remember(error.what());
    return RARE_TRT_ERROR_BACKEND;
  } catch (const std::bad_alloc&) {
    out_of_memory = true;
    return RARE_TRT_ERROR_MEMORY;
  } catch (const std::exception& error) {
    remember(error.what());
    return RARE_TRT_ERROR_INTERNAL;
  } catch (...) {
    remember("something was thrown that is no error; please report it");
    return RARE_TRT_ERROR_INTERNAL;
  }
}

void check_not_null(const void* argument, const char* name) {
  if (argument == nullptr) {
    throw ArgumentError(text(name, " is NULL; expected an address: pass one"));
  }
}

// Structs are of one known size so far; a later version that adds fields takes this one too.
template <class Struct>
void check_size(const Struct& value, const char* name) {
  if (value.size == sizeof(Struct)) return;
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

// The product, held to what fits in memory.
std::int64_t times(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  if (a < 1 || b < 1 || __builtin_mul_overflow(a, b, &product)) {
    throw ArgumentError(text("scan->shape or channels make ", a, " x ", b,
                             " voxels; expected positive sizes that fit in memory: mend them"));
  }
  return product;
}

// Steps in bytes of an array without gaps, i fastest; the fourth is from channel to channel.
std::array<std::int64_t, 4> dense(const Shape& shape, std::int64_t channels, std::int64_t size) {
  std::array<std::int64_t, 4> steps = {size, 0, 0, 0};
  for (std::size_t axis = 0; axis < 3; ++axis) steps[axis + 1] = times(steps[axis], shape[axis]);
  times(steps[3], channels);
  return steps;
}

// Bytes from the first to the last voxel of an axis.
std::int64_t reach(std::int64_t stride, std::int64_t count) {
  std::int64_t bytes = 0;
  // A quarter of the type's range, so that those of all axes can be added.
  constexpr auto most = std::numeric_limits<std::int64_t>::max() / 4;
  if (__builtin_mul_overflow(stride, count - 1, &bytes) || bytes > most || bytes < -most) {
    throw ArgumentError(text("a stride of ", stride, " bytes over ", count,
                             " voxels leaves the memory; expected strides in bytes: mend them"));
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
  auto steps = dense(found.shape, found.channels, size);
  if (std::any_of(scan.strides, scan.strides + 4, [](auto step) { return step != 0; })) {
    std::copy_n(scan.strides, 4, steps.begin());
  }
  std::copy_n(steps.begin(), 3, found.strides.begin());
  found.channel_stride = steps[3];
  const std::array<std::int64_t, 4> counts = {found.shape[0], found.shape[1], found.shape[2],
                                              found.channels};
  for (std::size_t axis = 0; axis < 4; ++axis) {
    reach(steps[axis], counts[axis]);
    // Repeated slices or channels are no scan, but a step that was forgotten.
    if (steps[axis] == 0 && counts[axis] > 1) {
      throw ArgumentError(text("scan->strides are ", steps[0], ", ", steps[1], ", ", steps[2], ", ",
                               steps[3],
                               "; expected none of 0 where there is more than one voxel "
                               "or channel, or all of them for dense voxels: mend them"));
    }
  }
  return found;
}

// Refuses strides by which two voxels would share a byte.
void check_apart(const Shape& shape, const Strides& strides) {
  std::array<std::size_t, 3> axes = {0, 1, 2};
  std::sort(axes.begin(), axes.end(),
            [&](auto a, auto b) { return reach(strides[a], 2) < reach(strides[b], 2); });
  std::int64_t taken = 0;
  for (const auto axis : axes) {
    if (shape[axis] == 1) continue;
    if (reach(strides[axis], 2) <= taken) {
      throw ArgumentError(text("label_strides are ", strides[0], ", ", strides[1], ", ", strides[2],
                               "; expected steps by which no two voxels share a byte: mend them"));
    }
    taken += reach(strides[axis], shape[axis]);
  }
}

Labels labels(const rare_trt_scan& scan, std::uint8_t* data, const std::int64_t* strides) {
  Labels found{data, {}, {}};
  std::copy_n(scan.shape, 3, found.shape.begin());
  std::copy_n(dense(found.shape, 1, 1).begin(), 3, found.strides.begin());
  if (strides != nullptr) std::copy_n(strides, 3, found.strides.begin());
  check_apart(found.shape, found.strides);
  return found;
}

Affine affine(const rare_trt_scan& scan) {
  Affine found;
  for (int row = 0; row < 4; ++row) {
    for (int column = 0; column < 4; ++column) found(row, column) = scan.affine[4 * row + column];
  }
  if (!(found.row(3) == Eigen::RowVector4d(0, 0, 0, 1))) {
    throw ScanError("the affine's last row is not 0 0 0 1; expected rows of a 4x4 matrix: mend it");
  }
  return found;
}

Request request(const rare_trt_request* from) {
  Request found;
  if (from == nullptr) return found;
  check_size(*from, "request");
  if (from->route != nullptr) found.route = *from->route;
  if (from->at_mm != nullptr) found.at_mm = {from->at_mm[0], from->at_mm[1], from->at_mm[2]};
  return found;
}

void copy(const Triple& from, double (&to)[3]) { std::copy(from.begin(), from.end(), to); }

template <std::size_t size>
void copy(const std::string& from, char (&to)[size]) {
  const std::size_t count = std::min(from.size(), size - 1);
  std::copy_n(from.begin(), count, to);
  to[count] = '\0';
}

rare_trt_report filled(const RouteDecision& decision) {
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
  report.distance = decision.distance;
  report.next_distance = decision.next_distance;
  return report;
}

rare_trt_report filled(const Report& from) {
  rare_trt_report report = filled(from.route);
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
  return report;
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
             const rare_trt_request* asked, std::uint8_t* data, const std::int64_t* strides,
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
  segmenter->segmenter.segment(from, Grid(from.shape, affine(*scan)), request(asked), to, found);
  if (report != nullptr) *report = filled(found);
}

void decide(const rare_trt_segmenter* segmenter, const double* spacing_mm,
            const std::int32_t* route, rare_trt_report* report) {
  check_not_null(segmenter, "segmenter");
  check_not_null(spacing_mm, "spacing_mm");
  check_not_null(report, "report");
  check_size(*report, "report");
  std::optional<int> forced;
  if (route != nullptr) forced = *route;
  const Triple spacing = {spacing_mm[0], spacing_mm[1], spacing_mm[2]};
  *report = filled(segmenter->segmenter.choose(spacing, forced));
}

const std::vector<std::string>& label_names(const rare_trt_segmenter& segmenter) {
  return segmenter.segmenter.manifest().model.labels;
}

}  // namespace
}  // namespace rare_trt

const char* rare_trt_version(void) { return rare_trt::kVersion; }

rare_trt_status rare_trt_open(const char* folder, const rare_trt_options* options,
                              rare_trt_segmenter** segmenter) {
  return rare_trt::guarded([&] { rare_trt::open(folder, options, segmenter); });
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
  return rare_trt::guarded([&] { rare_trt::decide(segmenter, spacing_mm, route, report); });
}

rare_trt_status rare_trt_segment(rare_trt_segmenter* segmenter, const rare_trt_scan* scan,
                                 const rare_trt_request* request, uint8_t* labels,
                                 const int64_t* label_strides, rare_trt_report* report) {
  return rare_trt::guarded(
      [&] { rare_trt::segment(segmenter, scan, request, labels, label_strides, report); });
}

const char* rare_trt_last_error(void) {
  if (rare_trt::out_of_memory) return "there is no memory left: free some";
  return rare_trt::last_error.c_str();
}
