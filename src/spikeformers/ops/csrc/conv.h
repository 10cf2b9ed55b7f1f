// Shape of a convolution of spike bits [images, height, width, words], and the panels of its
// outputs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rows.h"

// As ops/spike_conv/native.py fills it.
struct Conv {
  int64_t images, height, width, channels, outputs, kernel, stride, padding, out_height, out_width;
  int64_t threads;  // to cut the work for; results do not depend on it

  int64_t words() const { return (channels + 63) / 64; }
  int64_t fan_in() const { return channels * kernel * kernel; }
  int64_t positions() const { return images * out_height * out_width; }
};

template <class Real>
struct Panel {
  int64_t first, outputs, columns;  // the first output; how many; columns, some of them unused

  Panel(const Conv& conv, int64_t index)
      : first(index * wide_columns<Real>),
        outputs(std::min(wide_columns<Real>, conv.outputs - first)),
        columns(outputs * int64_t{sizeof(Real)} <= NARROW_ROW ? NARROW_ROW / sizeof(Real)
                                                          : wide_columns<Real>) {}

  static int64_t count(const Conv& conv) {
    return (conv.outputs + wide_columns<Real> - 1) / wide_columns<Real>;
  }
  bool is_narrow() const { return columns < wide_columns<Real>; }
};
