#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/support/cuda/device_memory.h"
#include "tests/support/cuda/emulation.h"
#include "tests/support/cuda/runtime_api.h"

using Clock = std::chrono::steady_clock;

struct CUstream_st {
  int device = 0;
  std::deque<std::function<void()>> work = {};
  uint64_t queued = 0, done = 0;
  bool destroyed = false;
};

struct CUevent_st {
  bool timed = true;
  cudaStream_t stream = nullptr;
  uint64_t after = 0;  // work of the stream that comes before the event
  std::shared_ptr<Clock::time_point> time = {};
};

namespace emulation {
namespace {

constexpr int kMultiprocessors = 132;  // an H100's
constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostBlocksY = 65535;
constexpr size_t kDefaultShared = size_t{48} << 10;
constexpr int kMostShared = 163 << 10;  // an A100's

// One lock for all of the runtime: work runs under it, one kernel at a time.
std::recursive_mutex runtime_mutex;
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

Streams initial_streams() {
  const char* name = std::getenv("ELWISE_EMULATION_STREAMS");
  return name != nullptr && std::strcmp(name, "lazy") == 0 ? Streams::lazy : Streams::eager;
}

struct Runtime {
  Streams mode = initial_streams();
  std::vector<std::unique_ptr<CUstream_st>> streams;  // destroyed ones, too: events still name them
  CUstream_st default_streams[kDevices] = {{.device = 0}, {.device = 1}};
  std::map<void*, size_t> pinned;                // sizes
  std::map<const void*, size_t> dynamic_shared;  // limits of kernels
  std::function<void(const void*)> kernel_observer;
};

Runtime& runtime() {
  static Runtime state;
  return state;
}

cudaStream_t resolved(cudaStream_t stream) {
  return stream != nullptr ? stream : &runtime().default_streams[current_device];
}

void drain(cudaStream_t stream, uint64_t until = UINT64_MAX) {
  while (!stream->work.empty() && stream->done < until) {
    const std::function<void()> next = std::move(stream->work.front());
    stream->work.pop_front();
    ++stream->done;
    const DeviceAccess access(stream->device);
    next();
  }
}

void drain_device(int device) {
  drain(&runtime().default_streams[device]);
  for (const auto& stream : runtime().streams) {
    if (stream->device == device) drain(stream.get());
  }
}

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

bool is_pinned(const void* pointer) {
  const auto& pinned = runtime().pinned;
  auto after = pinned.upper_bound(const_cast<void*>(pointer));
  if (after == pinned.begin()) return false;
  const auto& [begin, bytes] = *--after;
  return static_cast<const char*>(pointer) < static_cast<const char*>(begin) + bytes;
}

}  // namespace

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  const std::lock_guard lock(runtime_mutex);
  stream = resolved(stream);
  if (stream->destroyed) fault("work for a stream that was destroyed");
  stream->work.push_back(std::move(work));
  ++stream->queued;
  if (runtime().mode == Streams::eager) drain(stream);
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body) {
  const std::lock_guard lock(runtime_mutex);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const bool grid_fits = grid.x > 0 && grid.x <= INT32_MAX && grid.y > 0 && grid.y <= kMostBlocksY &&
                         grid.z > 0 && grid.z <= kMostBlocksY;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (!grid_fits || threads == 0 || threads > kMostThreads || block.z > 64) {
    return result(cudaErrorInvalidConfiguration);
  }
  const auto limit = runtime().dynamic_shared.find(kernel);
  const size_t most = limit != runtime().dynamic_shared.end() ? limit->second : kDefaultShared;
  if (config.dynamicSmemBytes > most) return result(cudaErrorInvalidValue);
  if (resolved(config.stream)->device != current_device) return result(cudaErrorInvalidResourceHandle);
  return enqueue(config.stream, [=, bytes = config.dynamicSmemBytes] {
    if (runtime().kernel_observer) runtime().kernel_observer(kernel);
    run_grid(grid, block, bytes, body);
  });
}

cudaError_t allow_dynamic_shared(const void* kernel, int bytes) {
  const std::lock_guard lock(runtime_mutex);
  if (bytes < 0 || bytes > kMostShared) return result(cudaErrorInvalidValue);
  runtime().dynamic_shared[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

void set_streams(Streams mode) {
  const std::lock_guard lock(runtime_mutex);
  for (int device = 0; device < kDevices; ++device) drain_device(device);
  runtime().mode = mode;
}

Streams streams() {
  return runtime().mode;
}

void observe_kernels(std::function<void(const void* kernel)> observer) {
  const std::lock_guard lock(runtime_mutex);
  for (int device = 0; device < kDevices; ++device) drain_device(device);
  runtime().kernel_observer = std::move(observer);
}

}  // namespace emulation

using namespace emulation;

cudaError_t cudaGetDeviceCount(int* count) {
  const char* hidden = std::getenv("CUDA_VISIBLE_DEVICES");
  *count = hidden != nullptr && *hidden == '\0' ? 0 : kDevices;
  return *count > 0 ? cudaSuccess : result(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return result(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = kMultiprocessors;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(runtime_mutex);
  drain_device(current_device);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(runtime_mutex);
  *total = DeviceMemory::kCapacity;
  *free = *total - DeviceMemory::of(current_device).in_use();
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const std::lock_guard lock(runtime_mutex);
  *pointer = DeviceMemory::of(current_device).allocate(bytes);
  return result(*pointer != nullptr ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* pointer) {
  const std::lock_guard lock(runtime_mutex);
  const int device = DeviceMemory::owner(pointer);
  if (device < 0) return result(cudaErrorInvalidValue);
  drain_device(device);
  return result(DeviceMemory::of(device).free(pointer) ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  const std::lock_guard lock(runtime_mutex);
  *pointer = std::malloc(bytes);
  if (*pointer == nullptr) return result(cudaErrorMemoryAllocation);
  runtime().pinned[*pointer] = bytes;
  return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  const std::lock_guard lock(runtime_mutex);
  if (!is_pinned(host)) return result(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
  const std::lock_guard lock(runtime_mutex);
  if (runtime().pinned.erase(pointer) == 0) return result(cudaErrorInvalidValue);
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const std::lock_guard lock(runtime_mutex);
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const int target = DeviceMemory::owner(to), source = DeviceMemory::owner(from);
  if (kind == cudaMemcpyDefault || to_device != (target >= 0) || from_device != (source >= 0)) {
    return result(cudaErrorInvalidValue);
  }
  if (to_device && !from_device && !is_pinned(from)) {
    // The driver may wait for the stream, or read the memory later: in both cases a mistake of ours.
    fault("cudaMemcpyAsync to the device from host memory that is not pinned");
  }
  enqueue(stream, [=] {
    const DeviceAccess target_open(std::max(target, 0)), source_open(std::max(source, 0));
    std::memcpy(to, from, bytes);
  });
  if (!to_device && !is_pinned(to)) drain(resolved(stream));
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  if (DeviceMemory::owner(pointer) < 0) return result(cudaErrorInvalidValue);
  return enqueue(stream, [=] { std::memset(pointer, value, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const std::lock_guard lock(runtime_mutex);
  runtime().streams.push_back(std::make_unique<CUstream_st>(CUstream_st{.device = current_device}));
  *stream = runtime().streams.back().get();
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(runtime_mutex);
  drain(stream);
  stream->destroyed = true;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(runtime_mutex);
  drain(resolved(stream));
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->stream == nullptr) return cudaSuccess;
  return enqueue(stream, [recorded = *event] { drain(recorded.stream, recorded.after); });
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st{.timed = (flags & cudaEventDisableTiming) == 0};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;  // who waits for it still does
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(runtime_mutex);
  event->stream = resolved(stream);
  event->after = event->stream->queued + 1;
  event->time = std::make_shared<Clock::time_point>();
  return enqueue(stream, [time = event->time] { *time = Clock::now(); });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard lock(runtime_mutex);
  const bool done = event->stream == nullptr || event->stream->done >= event->after;
  return done ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(runtime_mutex);
  if (event->stream != nullptr) drain(event->stream, event->after);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (!start->timed || !end->timed || start->time == nullptr || end->time == nullptr) {
    return result(cudaErrorInvalidResourceHandle);
  }
  if (cudaEventQuery(start) != cudaSuccess || cudaEventQuery(end) != cudaSuccess) {
    return result(cudaErrorNotReady);
  }
  *milliseconds = std::chrono::duration<float, std::milli>(*end->time - *start->time).count();
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
  }
  return "unknown";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
  }
  return "unknown error";
}
