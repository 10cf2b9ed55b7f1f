// Batch norms in a row as one affine map gain y + offset, and the way back; see
// ops/fold_norms/reference.py. Vectors [C] only: one thread, in double.
#include <algorithm>
#include <cmath>
#include <vector>

#include "export.h"
#include "norms.h"
#include "number.h"
#include "rows.h"

namespace {

// What one norm leaves for the way back.
struct Tape {
  double *gain, *centred, *scale, *inverse;

  Tape(double* tape, int64_t norm, int64_t C)
      : gain(tape + 4 * norm * C), centred(gain + C), scale(centred + C), inverse(scale + C) {}
};

template <class Real>
void widen_all(const Real* __restrict from, double* __restrict to, int64_t C) {
  for (int64_t c = 0; c < C; ++c) to[c] = from[c];
}

template <class Real>
void narrow_all(const double* __restrict from, void* to, int64_t C) {
  Real* __restrict out = static_cast<Real*>(to);
  for (int64_t c = 0; c < C; ++c) out[c] = static_cast<Real>(from[c]);
}

// running += momentum (factor seen - running)
template <class Real>
void move_towards(void* running, const double* __restrict seen, double factor, double momentum,
                  int64_t C) {
  Real* __restrict out = static_cast<Real*>(running);
  for (int64_t c = 0; c < C; ++c)
    out[c] = static_cast<Real>(out[c] + momentum * (factor * seen[c] - out[c]));
}

// Mean and variance of gain y + offset.
template <class Real>
void moments_of(const Moments& y, const double* __restrict gain, const double* __restrict offset,
                double* __restrict mean, double* __restrict var, int64_t C) {
  const Real *__restrict mean_y = static_cast<const Real*>(y.mean);
  const Real *__restrict var_y = static_cast<const Real*>(y.var);
  for (int64_t c = 0; c < C; ++c) {
    mean[c] = gain[c] * mean_y[c] + offset[c];
    var[c] = gain[c] * gain[c] * var_y[c];
  }
}

// One norm more: its scale and shift join gain and offset.
template <class Real>
void append(const Norm& norm, const double* __restrict mean, const double* __restrict var,
            double* __restrict gain, double* __restrict offset, const Tape& tape, int64_t C) {
  const Real *__restrict weight = static_cast<const Real*>(norm.weight);
  const Real *__restrict bias = static_cast<const Real*>(norm.bias);
  double *__restrict before = tape.gain, *__restrict centred = tape.centred;
  double *__restrict scale = tape.scale, *__restrict inverse = tape.inverse;
  for (int64_t c = 0; c < C; ++c) {
    before[c] = gain[c];
    inverse[c] = 1 / std::sqrt(var[c] + norm.eps);
    scale[c] = weight[c] * inverse[c];
    centred[c] = offset[c] - mean[c];
    gain[c] *= scale[c];
    offset[c] = centred[c] * scale[c] + bias[c];
  }
}

template <class Real>
int forward(const Norm* norms, int64_t count, int64_t C, const Real* bias, const Moments* y,
            void* gain_out, void* offset_out, double* tape) {
  std::vector<double> gain(C, 1), offset(C), mean(C), var(C);
  if (bias) widen_all(bias, offset.data(), C);
  for (int64_t i = 0; i < count; ++i) {
    const Norm& norm = norms[i];
    if (norm.training) {
      moments_of<Real>(*y, gain.data(), offset.data(), mean.data(), var.data(), C);
      // One value per channel has no variance; the running one then learns that it is 0.
      const double unbiased = y->total / std::max(y->total - 1, 1.0);
      move_towards<Real>(norm.running_mean, mean.data(), 1, norm.momentum, C);
      move_towards<Real>(norm.running_var, var.data(), unbiased, norm.momentum, C);
    } else {
      widen_all(static_cast<const Real*>(norm.running_mean), mean.data(), C);
      widen_all(static_cast<const Real*>(norm.running_var), var.data(), C);
    }
    append<Real>(norm, mean.data(), var.data(), gain.data(), offset.data(), Tape(tape, i, C), C);
  }
  narrow_all<Real>(gain.data(), gain_out, C);
  narrow_all<Real>(offset.data(), offset_out, C);
  return 0;
}

// Gradients on their way from the last norm to y: of gain, offset, mean and variance.
struct Grads {
  std::vector<double> gain, offset, mean, var;

  explicit Grads(int64_t C) : gain(C), offset(C), mean(C), var(C) {}
};

// Through scale and shift of a norm, to its parameters and to what is in front of it.
template <class Real>
void step_back(const Tape& tape, double* __restrict grad_gain, double* __restrict grad_offset,
               double* __restrict grad_scale, Real* __restrict grad_weight,
               Real* __restrict grad_bias, int64_t C) {
  const double *__restrict gain = tape.gain, *__restrict centred = tape.centred;
  const double *__restrict scale = tape.scale, *__restrict inverse = tape.inverse;
  for (int64_t c = 0; c < C; ++c) {
    grad_scale[c] = grad_gain[c] * gain[c] + grad_offset[c] * centred[c];
    grad_weight[c] = static_cast<Real>(grad_scale[c] * inverse[c]);
    grad_bias[c] = static_cast<Real>(grad_offset[c]);
    grad_gain[c] *= scale[c];
    grad_offset[c] *= scale[c];
  }
}

// Through the mean that a norm takes away, and the variance it divides by.
template <class Real>
void through_moments(const Tape& tape, const Moments& y, const double* __restrict grad_scale,
                     Grads& grads, int64_t C) {
  const Real *__restrict mean = static_cast<const Real*>(y.mean);
  const Real *__restrict var = static_cast<const Real*>(y.var);
  const double *__restrict gain = tape.gain, *__restrict scale = tape.scale;
  const double *__restrict inverse = tape.inverse;
  double *__restrict to_gain = grads.gain.data(), *__restrict to_offset = grads.offset.data();
  double *__restrict to_mean = grads.mean.data(), *__restrict to_var = grads.var.data();
  for (int64_t c = 0; c < C; ++c) {
    const double grad_var = -grad_scale[c] * scale[c] * inverse[c] * inverse[c] / 2;
    to_gain[c] += 2 * gain[c] * var[c] * grad_var - to_offset[c] * mean[c];
    to_mean[c] -= to_offset[c] * gain[c];
    to_var[c] += gain[c] * gain[c] * grad_var;
    to_offset[c] = 0;  // a mean takes every offset away
  }
}

template <class Real>
int backward(int64_t count, int64_t C, const Real* grad_gain, const Real* grad_offset,
             const uint8_t* training, const Moments* y, double* tape, Real* grads_out,
             Real* through) {
  Grads grads(C);
  std::vector<double> grad_scale(C);
  widen_all(grad_gain, grads.gain.data(), C);
  widen_all(grad_offset, grads.offset.data(), C);
  for (int64_t i = count - 1; i >= 0; --i) {
    const Tape norm(tape, i, C);
    Real* const out = grads_out + 2 * i * C;
    step_back(norm, grads.gain.data(), grads.offset.data(), grad_scale.data(), out, out + C, C);
    if (training[i]) through_moments<Real>(norm, *y, grad_scale.data(), grads, C);
  }
  narrow_all<Real>(grads.offset.data(), grads_out + 2 * count * C, C);
  std::fill_n(through, 2 * C, Real{0});
  if (!y) return 0;
  const Real* const mean = static_cast<const Real*>(y->mean);
  for (int64_t c = 0; c < C; ++c) {
    const double slope = 2 * grads.var[c] / y->total;
    through[c] = static_cast<Real>(slope);
    through[C + c] = static_cast<Real>(grads.mean[c] / y->total - slope * mean[c]);
  }
  return 0;
}

}  // namespace

EXPORT int fold_norms_forward(int32_t dtype, int64_t count, int64_t C, const Norm* norms,
                              const void* bias, const Moments* y, void* gain, void* offset,
                              double* tape) {
  return with_dtype(dtype, [&](auto number) {
    using Real = Wide<decltype(number)>;
    return unless_out_of_memory([&] {
      return forward(norms, count, C, static_cast<const Real*>(bias), y, gain, offset, tape);
    });
  });
}

EXPORT int fold_norms_backward(int32_t dtype, int64_t count, int64_t C, const void* grad_gain,
                               const void* grad_offset, const uint8_t* training, const Moments* y,
                               double* tape, void* grads, void* through) {
  return with_dtype(dtype, [&](auto number) {
    using Real = Wide<decltype(number)>;
    return unless_out_of_memory([&] {
      return backward(count, C, static_cast<const Real*>(grad_gain),
                      static_cast<const Real*>(grad_offset), training, y, tape,
                      static_cast<Real*>(grads), static_cast<Real*>(through));
    });
  });
}
