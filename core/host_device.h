#pragma once

/// Before a function that kernels on the CPU and in CUDA code both call.
#ifdef __CUDACC__
#define ELWISE_HOST_DEVICE __host__ __device__
#else
#define ELWISE_HOST_DEVICE
#endif
