#pragma once

namespace elwise {

/// Whether the processor has AVX512-BF16, products and conversions of bf16, for which Highway 1.0.3 has no
/// target.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
inline const bool kHasAvx512Bf16 = __builtin_cpu_supports("avx512bf16") != 0;
#else
inline constexpr bool kHasAvx512Bf16 = false;
#endif

}  // namespace elwise
