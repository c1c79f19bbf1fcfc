#pragma once

#include <cstdint>
#include <functional>

namespace elwise {

/// Threads that kernels use. Default: OMP_NUM_THREADS or the number of processors this process may run on.
int num_threads();
/// Throws Error unless count is positive. Must not be called while a kernel runs.
void set_num_threads(int count);

/// Splits [0, count) into at most num_threads() contiguous ranges and calls body(begin, end) for each, in
/// parallel. A range has at least `grain` items (the last may have fewer); one range runs on the caller.
/// How the ranges fall depends on the thread count: a kernel must compute the same bits for any split.
/// An exception thrown by body is rethrown on the caller. Nested calls run serially.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body);

/// Calls body(task) for each task in [0, count), handed out one by one: for few, large or uneven tasks. A
/// task starts after all smaller ones have started.
void parallel_tasks(int64_t count, const std::function<void(int64_t task)>& body);

/// The index in [0, num_threads()) of the calling thread within the innermost parallel_for/parallel_tasks.
int thread_index();

}  // namespace elwise
