// Batch norms in a row and what they see, as ctypes lays them out in ops/fold_norms/native.py.
#pragma once

#include <cstdint>

struct Norm {
  const void *weight, *bias;
  void *running_mean, *running_var;
  double eps, momentum;
  int64_t training;
};

// Mean and (biased) variance of `total` numbers per channel.
struct Moments {
  const void *mean, *var;
  double total;
};
