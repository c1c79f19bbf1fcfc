#include <elwise/elwise.h>

#include <iostream>

#include "core/error.h"

/// Exits 0 when the installed library loads what it saved and can multiply.
int main() {
  using namespace elwise;
  const Tensor x = from_vector<float>({1, 2, 3, 4}, {2, 2});
  save_npy("x.npy", x);
  const Tensor product = matmul(load_npy("x.npy"), x);
  std::cout << product << '\n';
  const bool correct = product.to_vector<float>() == std::vector<float>{7, 10, 15, 22};
  return correct && consumer::kAnswer == 42 ? 0 : 1;
}
