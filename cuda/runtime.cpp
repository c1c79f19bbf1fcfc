#include "cuda/runtime.h"

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "core/allocator.h"
#include "core/cuda_backend.h"

namespace elwise::cuda {
namespace {

constexpr int kMostDevices = 64;
constexpr int64_t kStagingBytes = int64_t{4} << 20;

/// How an IndexKernel calls its indices and their places.
struct IndexWords {
  const char *kernel, *index, *position;
};
constexpr IndexWords kIndexWords[] = {
    {"index_select", "index", "at"}, {"gather", "index", "at"}, {"cross_entropy", "target", "at row"}};

/// What one device needs from its first use to the end of the program.
struct DeviceState {
  Stream stream;
  int multiprocessors = 0;
  PinnedBuffer fault_memory{sizeof(InputFault)};
  InputFault* fault = new (fault_memory.data()) InputFault;  // for the host
  void* fault_on_device = nullptr;

  DeviceState() {
    ELWISE_CUDA_CHECK(
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device()));
    ELWISE_CUDA_CHECK(cudaHostGetDevicePointer(&fault_on_device, fault, 0));
  }
};

std::mutex state_mutex;

/// The current device's.
DeviceState& state() {
  // Never destroyed: tensors in static objects may outlive any order of destruction.
  static auto& states = *new std::array<std::unique_ptr<DeviceState>, kMostDevices>;
  const int device = current_device();
  const std::lock_guard lock(state_mutex);
  auto& chosen = states[static_cast<size_t>(device)];
  if (chosen == nullptr) chosen = std::make_unique<DeviceState>();
  return *chosen;
}

thread_local std::array<cudaStream_t, kMostDevices> chosen_streams{};

/// CUDA's streams that no Stream has now. They are never destroyed: memory that belongs to one, or that one
/// used, may live longer than the Stream.
class IdleStreams {
 public:
  static cudaStream_t take(int device) {
    const std::lock_guard lock(mutex());
    auto& idle = of(device);
    cudaStream_t stream = nullptr;
    if (idle.empty()) {
      ELWISE_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    } else {
      stream = idle.back();
      idle.pop_back();
    }
    return stream;
  }
  static void give_back(int device, cudaStream_t stream) {
    const std::lock_guard lock(mutex());
    of(device).push_back(stream);
  }

 private:
  static std::mutex& mutex() {
    static std::mutex guard;
    return guard;
  }
  static std::vector<cudaStream_t>& of(int device) {
    static auto& streams = *new std::array<std::vector<cudaStream_t>, kMostDevices>;
    return streams[static_cast<size_t>(device)];
  }
};

/// A thread's scratch on each stream. Its own: another thread's kernels on the stream may come between two of
/// this thread's that share it.
class Workspaces {
 public:
  Workspaces() = default;
  ~Workspaces() {
    for (const auto& [stream, workspace] : all_) cudaFree(workspace.memory);
  }
  Workspaces(const Workspaces&) = delete;
  Workspaces& operator=(const Workspaces&) = delete;

  void* of(cudaStream_t stream) {
    const auto known = all_.find(stream);
    if (known != all_.end()) return known->second.memory;
    Workspace made{.device = current_device()};
    ELWISE_CUDA_CHECK(cudaMalloc(&made.memory, kWorkspaceBytes));
    return all_.emplace(stream, made).first->second.memory;
  }
  void release(int device) {
    std::erase_if(all_, [device](const auto& entry) {
      return entry.second.device == device && cudaFree(entry.second.memory) == cudaSuccess;
    });
  }

 private:
  struct Workspace {
    int device;
    void* memory = nullptr;
  };
  std::map<cudaStream_t, Workspace> all_;
};

thread_local Workspaces workspaces;

/// Pinned memory for copies to a device: the host's memory may change or go as soon as it was copied here.
class Staging {
 public:
  explicit Staging(int64_t bytes) {
    const std::lock_guard lock(mutex());
    auto& idle = free_buffers();
    for (auto candidate = idle.begin(); candidate != idle.end(); ++candidate) {
      if ((*candidate)->buffer.bytes() < bytes || !(*candidate)->used.done()) continue;
      slot_ = std::move(*candidate);
      idle.erase(candidate);
      return;
    }
    slot_ = std::make_unique<Slot>(bytes);
  }
  ~Staging() {
    const std::lock_guard lock(mutex());
    free_buffers().push_back(std::move(slot_));
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  char* data() const { return slot_->buffer.data(); }
  /// The buffer is free once `stream` has done its work until now.
  void used_by(cudaStream_t stream) { slot_->used.record(stream); }

 private:
  struct Slot {
    explicit Slot(int64_t bytes) : buffer(bytes) {}
    PinnedBuffer buffer;
    Event used;
  };
  static std::mutex& mutex() {
    static std::mutex guard;
    return guard;
  }
  static std::vector<std::unique_ptr<Slot>>& free_buffers() {
    static auto& buffers = *new std::array<std::vector<std::unique_ptr<Slot>>, kMostDevices>;
    return buffers[static_cast<size_t>(current_device())];
  }
  std::unique_ptr<Slot> slot_;
};

void upload(char* to, const char* from, int64_t bytes) {
  for (int64_t done = 0; done < bytes; done += kStagingBytes) {
    const int64_t part = std::min(kStagingBytes, bytes - done);
    Staging staging(part);
    std::memcpy(staging.data(), from + done, static_cast<size_t>(part));
    ELWISE_CUDA_CHECK(cudaMemcpyAsync(to + done, staging.data(), static_cast<size_t>(part),
                                      cudaMemcpyHostToDevice, current_stream()));
    staging.used_by(current_stream());
  }
}

}  // namespace

void check(cudaError_t status, const char* call, std::source_location place) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // forget it
  std::string_view file = place.file_name();
  file.remove_prefix(std::min(file.size(), file.rfind("cuda/")));
  fail(call, " failed: ", cudaGetErrorString(status), " (", cudaGetErrorName(status), "), ", file, ":",
       place.line());
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return std::min(count, kMostDevices);
}

std::string no_device_reason() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  return status == cudaSuccess ? "none is visible" : cudaGetErrorString(status);
}

int current_device() {
  int device = 0;
  ELWISE_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

void set_device(int device) {
  ELWISE_CUDA_CHECK(cudaSetDevice(device));
}

DeviceGuard::DeviceGuard(int device) : previous_(current_device()) {
  if (device != previous_) set_device(device);
}
DeviceGuard::~DeviceGuard() {
  cudaSetDevice(previous_);
}

Stream::Stream() : device_(current_device()), handle_(IdleStreams::take(device_)) {}
Stream::~Stream() {
  cudaStreamSynchronize(handle_);
  IdleStreams::give_back(device_, handle_);
}

cudaStream_t current_stream() {
  const cudaStream_t chosen = chosen_streams[static_cast<size_t>(current_device())];
  return chosen != nullptr ? chosen : state().stream.handle();
}

StreamGuard::StreamGuard(const Stream& stream) : device_(stream.device()), index_(stream.device()) {
  previous_ = std::exchange(chosen_streams[static_cast<size_t>(index_)], stream.handle());
}
StreamGuard::~StreamGuard() {
  chosen_streams[static_cast<size_t>(index_)] = previous_;
}

Event::Event(Timing timing) {
  const unsigned flags = timing == Timing::on ? cudaEventDefault : cudaEventDisableTiming;
  ELWISE_CUDA_CHECK(cudaEventCreateWithFlags(&handle_, flags));
}
Event::~Event() {
  cudaEventDestroy(handle_);
}
void Event::record(cudaStream_t stream) {
  ELWISE_CUDA_CHECK(cudaEventRecord(handle_, stream));
}
bool Event::done() const {
  const cudaError_t status = cudaEventQuery(handle_);
  if (status == cudaErrorNotReady) return false;
  ELWISE_CUDA_CHECK(status);
  return true;
}
void Event::synchronize() const {
  ELWISE_CUDA_CHECK(cudaEventSynchronize(handle_));
}
void Event::block(cudaStream_t stream) const {
  ELWISE_CUDA_CHECK(cudaStreamWaitEvent(stream, handle_, 0));
}
float Event::milliseconds_since(const Event& start) const {
  float milliseconds = 0;
  ELWISE_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.handle_, handle_));
  return milliseconds;
}

PinnedBuffer::PinnedBuffer(int64_t bytes) : bytes_(bytes) {
  ELWISE_CUDA_CHECK(
      cudaHostAlloc(&data_, static_cast<size_t>(bytes), cudaHostAllocPortable | cudaHostAllocMapped));
}
PinnedBuffer::~PinnedBuffer() {
  cudaFreeHost(data_);
}

void* workspace(int64_t bytes) {
  ELWISE_CHECK(bytes <= kWorkspaceBytes, "cuda: a kernel asked for ", bytes,
               " bytes of workspace, there are ", kWorkspaceBytes);
  return workspaces.of(current_stream());
}

void release_workspaces() {
  workspaces.release(current_device());
}

InputFault* input_fault() {
  return static_cast<InputFault*>(state().fault_on_device);
}

int multiprocessors() {
  return state().multiprocessors;
}

void synchronize(int device) {
  const DeviceGuard guard(device);
  ELWISE_CUDA_CHECK(cudaStreamSynchronize(current_stream()));
  InputFault& fault = *state().fault;
  if (fault.found == 0) return;
  const InputFault found = std::exchange(fault, {});
  const IndexWords& words = kIndexWords[found.kernel];
  fail(words.kernel, ": ", words.index, " ", found.index, " ", words.position, " ", found.position,
       " is outside [0, ", found.size, ")");
}

void copy(void* to, Device to_device, const void* from, Device from_device, int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  if (to_device.type == DeviceType::cpu) {
    const DeviceGuard guard(from_device.index);
    ELWISE_CUDA_CHECK(cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToHost, current_stream()));
    synchronize(from_device.index);
  } else if (from_device.type == DeviceType::cpu) {
    const DeviceGuard guard(to_device.index);
    upload(static_cast<char*>(to), static_cast<const char*>(from), bytes);
  } else {
    if (to_device != from_device) synchronize(from_device.index);
    const DeviceGuard guard(to_device.index);
    ELWISE_CUDA_CHECK(cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, current_stream()));
    // The source may be freed, and its memory handed on, by a stream that knows nothing of this copy.
    if (to_device != from_device) synchronize(to_device.index);
  }
}

}  // namespace elwise::cuda
