#include "tests/support/cuda/fibers.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the CUDA emulation switches stacks by x86-64 code; configure with ELWISE_CUDA_EMULATION=OFF"
#endif

// Saves the callee-saved registers on the running stack, *from = stack pointer, and continues on stack `to`.
extern "C" void elwise_switch_stack(void** from, void* to);
asm(R"(
.text
.globl elwise_switch_stack
.type elwise_switch_stack, @function
elwise_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size elwise_switch_stack, .-elwise_switch_stack
)");

namespace emulation {

constinit Position current{};

namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr size_t kGuardBytes = 4096;
constexpr size_t kStackColours = 128,
                 kColourBytes = 5 * 64;  // an odd number of cache lines: it meets all sets
constexpr int kMostMasks = 8;            // different shuffle masks of one warp at one time
constexpr int kSavedRegisters = 6;

/// A stack and where it stopped.
struct Context {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

void arrived([[maybe_unused]] Context& self, [[maybe_unused]] Context* from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self.fake_stack, from != nullptr ? &from->bottom : nullptr,
                                  from != nullptr ? &from->size : nullptr);
#endif
}

/// `resumer` gets the stack that `from` is resumed from later.
void switch_to(Context& from, Context& to, Context* resumer) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
  elwise_switch_stack(&from.stack_pointer, to.stack_pointer);
  arrived(from, resumer);
}

void fiber_main();

/// Runs one thread after the other: kernels without barriers need a single stack.
class Fiber : public Context {
 public:
  Fiber() {
    memory_ = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory_, kGuardBytes, PROT_NONE);  // overflow is a fault, not a corruption
    bottom = memory_;
    size = kStackBytes;
    // Tops at the same place of each stack would share a few sets of the cache, from which they oust each
    // other.
    static size_t made = 0;
    const size_t colour = made++ % kStackColours * kColourBytes;
    auto** top = reinterpret_cast<void**>(static_cast<char*>(memory_) + kStackBytes - colour);
    *--top = nullptr;  // where fiber_main would return to
    *--top = reinterpret_cast<void*>(fiber_main);
    for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
    stack_pointer = top;
  }
  ~Fiber() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory_, kStackBytes);
#endif
    munmap(memory_, kStackBytes);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

 private:
  void* memory_;
};

/// Where the lanes of one mask meet. Two sets of values: a fast lane may come again before a slow one has
/// read.
struct Meeting {
  uint32_t mask = 0;
  uint32_t here = 0;
  uint32_t round = 0;
  std::array<std::array<uint64_t, kWarpSize>, 2> values;
  std::array<uint32_t, 2> came;
};

struct Warp {
  uint32_t alive = 0;
  int masks = 0;
  std::array<Meeting, kMostMasks> meetings;
};

enum class State : uint8_t { ready, at_meeting, at_barrier, ended };

struct Thread {
  uint3 index;
  int number;
  State state = State::ready;
  const Meeting* meeting = nullptr;
  uint32_t round = 0;
  const char* site = nullptr;  // of the barrier it waits at
  bool predicate = false;
  std::unique_ptr<Fiber> fiber;
};

class Grid;
Grid* running = nullptr;

/// A running kernel: its blocks one after the other.
class Grid {
 public:
  Grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body)
      : body_(body),
        threads_(block.x * block.y * block.z),
        warps_((threads_.size() + kWarpSize - 1) / kWarpSize),
        shared_((shared_bytes + sizeof(Line) - 1) / sizeof(Line)) {
    current = {.thread = {}, .block = {}, .block_size = block, .grid_size = grid};
    for (size_t i = 0; i < threads_.size(); ++i) turns_.push_back(i);
    if (order_ == Order::reverse) std::ranges::reverse(turns_);
  }

  void run() {
    const dim3 grid = current.grid_size;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) run_block({x, y, z});
      }
    }
  }

  void* shared() { return shared_.data(); }
  int thread_number() const { return thread_->number; }

  int wait_at_barrier(const char* site, bool predicate) {
    thread_->state = State::at_barrier;
    thread_->site = site;
    thread_->predicate = predicate;
    wait();
    return votes_;
  }

  Exchange meet(uint32_t mask, uint64_t value, const char* what) {
    const int lane = thread_->number % kWarpSize;
    if ((mask >> lane & 1) == 0) fault(std::string(what) + ": the lane is not in its own mask");
    Warp& warp = warps_[static_cast<size_t>(thread_->number / kWarpSize)];
    Meeting& meeting = meeting_of(warp, mask);
    const uint32_t round = meeting.round, set = round % 2;
    meeting.values[set][static_cast<size_t>(lane)] = value;
    meeting.here |= 1U << lane;
    thread_->site = what;
    if (!completes(warp, meeting)) {
      thread_->state = State::at_meeting;
      thread_->meeting = &meeting;
      thread_->round = round;
      wait();
    }
    return {meeting.came[set], meeting.values[set].data()};
  }

  [[noreturn]] void report(const std::string& message) const {
    throw Fault(describe(*thread_) + ": " + message);
  }

  void begin_fiber() { arrived(*thread_->fiber, &scheduler_); }

  /// Returns when the fiber is given another thread, maybe of another grid.
  void run_thread() {
    try {
      body_();
    } catch (const Fault& fault) {
      fault_ = fault.what();  // thrown on by the scheduler, on its own stack
    }
    thread_->state = State::ended;
    wait();
  }

 private:
  struct alignas(16) Line {
    char bytes[16];
  };

  void wait() { switch_to(*thread_->fiber, scheduler_, &scheduler_); }

  void run_block(uint3 block) {
    current.block = block;
    if (!shared_.empty()) std::memset(shared_.data(), 0xFF, shared_.size() * sizeof(Line));
    const dim3 size = current.block_size;
    for (Warp& warp : warps_) {
      warp.alive = 0;
      warp.masks = 0;
    }
    for (size_t i = 0; i < threads_.size(); ++i) {
      const auto n = static_cast<unsigned>(i);
      threads_[i] = {};
      threads_[i].index = {n % size.x, n / size.x % size.y, n / (size.x * size.y)};
      threads_[i].number = static_cast<int>(i);
      warps_[i / kWarpSize].alive |= 1U << i % kWarpSize;
    }
    size_t ended = 0;
    while (ended < threads_.size()) {
      if (order_ == Order::shuffled) std::ranges::shuffle(turns_, random_);
      bool progress = false;
      for (const size_t turn : turns_) {
        Thread& thread = threads_[turn];
        if (!can_run(thread)) continue;
        progress = true;
        resume(thread);
        if (thread.state == State::ended) {
          ++ended;
          leave(thread);
        }
      }
      if (!progress) open_barrier();
    }
  }

  static bool can_run(const Thread& thread) {
    return thread.state == State::ready ||
           (thread.state == State::at_meeting && thread.meeting->round != thread.round);
  }

  void resume(Thread& thread) {
    if (thread.fiber == nullptr) {
      if (idle_.empty()) {
        thread.fiber = std::make_unique<Fiber>();
      } else {
        thread.fiber = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    thread.state = State::ready;
    thread_ = &thread;
    current.thread = thread.index;
    switch_to(scheduler_, *thread.fiber, nullptr);
    if (!fault_.empty()) throw Fault(fault_);
  }

  void leave(Thread& thread) {
    idle_.push_back(std::move(thread.fiber));
    Warp& warp = warps_[static_cast<size_t>(thread.number / kWarpSize)];
    warp.alive &= ~(1U << thread.number % kWarpSize);
    for (int i = 0; i < warp.masks; ++i) completes(warp, warp.meetings[static_cast<size_t>(i)]);
  }

  /// Nothing can run: all threads wait at one barrier, or the kernel is wrong.
  void open_barrier() {
    const Thread* first = nullptr;
    votes_ = 0;
    for (const Thread& thread : threads_) {
      if (thread.state == State::at_meeting) {
        throw Fault(describe(thread) + ": " + thread.site + " waits for lanes that never come (mask " +
                    std::to_string(thread.meeting->mask) + ", here " + std::to_string(thread.meeting->here) +
                    ")");
      }
      if (thread.state != State::at_barrier) continue;
      if (first == nullptr) first = &thread;
      if (std::strcmp(thread.site, first->site) != 0) {
        throw Fault(describe(thread) + " waits at the barrier of " + thread.site + ", " + describe(*first) +
                    " at that of " + first->site);
      }
      votes_ += thread.predicate ? 1 : 0;
    }
    for (const Thread& thread : threads_) {
      if (thread.state == State::ended) {
        throw Fault(describe(thread) + " ended without the barrier of " + first->site + " where others wait");
      }
    }
    for (Thread& thread : threads_) thread.state = State::ready;
  }

  Meeting& meeting_of(Warp& warp, uint32_t mask) {
    const auto begin = warp.meetings.begin(), end = begin + warp.masks;
    const auto known = std::find_if(begin, end, [&](const Meeting& m) { return m.mask == mask; });
    if (known != end) return *known;
    auto place = end;
    if (warp.masks < kMostMasks) {
      ++warp.masks;
      place->here = place->round = 0;
    } else {
      place = std::find_if(begin, end, [](const Meeting& m) { return m.here == 0; });
      if (place == end) fault("too many shuffle masks in use at one time");
    }
    place->mask = mask;
    return *place;
  }

  static bool completes(const Warp& warp, Meeting& meeting) {
    if (meeting.here == 0 || meeting.here != (meeting.mask & warp.alive)) return false;
    meeting.came[meeting.round % 2] = meeting.here;
    meeting.here = 0;
    ++meeting.round;
    return true;
  }

  std::string describe(const Thread& thread) const {
    const auto triple = [](uint3 v) {
      return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
    };
    return "block " + triple(current.block) + ", thread " + triple(thread.index);
  }

  const std::function<void()>& body_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Line> shared_;
  Order order_ = order_of_next_kernel();
  std::vector<size_t> turns_;
  std::mt19937 random_{7};
  inline static Context scheduler_;  // a fiber may go on in a later grid, on another host thread
  Thread* thread_ = nullptr;
  int votes_ = 0;
  std::string fault_;
  inline static std::vector<std::unique_ptr<Fiber>> idle_;
};

void fiber_main() {
  running->begin_fiber();
  for (;;) running->run_thread();
}

}  // namespace

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  if (running != nullptr) throw Fault("a kernel was launched from a kernel");
  Grid kernel(grid, block, shared_bytes, body);
  running = &kernel;
  struct End {
    ~End() { running = nullptr; }
  } const end;
  kernel.run();
}

void* dynamic_shared() {
  return running->shared();
}
int barrier(const char* site, bool predicate) {
  return running->wait_at_barrier(site, predicate);
}
Exchange exchange(uint32_t mask, uint64_t value, const char* what) {
  return running->meet(mask, value, what);
}
int lane() {
  return running->thread_number() % kWarpSize;
}
void fault(const std::string& message) {
  if (running == nullptr) throw Fault(message);
  running->report(message);
}

}  // namespace emulation
