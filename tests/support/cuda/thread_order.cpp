#include <cstdlib>
#include <cstring>
#include <random>

#include "tests/support/cuda/fibers.h"

namespace emulation {
namespace {

Order initial_order() {
  const char* name = std::getenv("ELWISE_EMULATION_ORDER");
  if (name == nullptr || std::strcmp(name, "forward") == 0) return Order::forward;
  if (std::strcmp(name, "reverse") == 0) return Order::reverse;
  return std::strcmp(name, "shuffled") == 0 ? Order::shuffled : Order::mixed;
}

Order& chosen_order() {
  static Order chosen = initial_order();
  return chosen;
}

}  // namespace

void set_order(Order order) {
  chosen_order() = order;
}
Order order() {
  return chosen_order();
}

Order order_of_next_kernel() {
  static std::minstd_rand random;
  return chosen_order() == Order::mixed ? static_cast<Order>(random() % 3) : chosen_order();
}

}  // namespace emulation
