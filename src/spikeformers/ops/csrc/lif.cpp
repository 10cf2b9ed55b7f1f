// The op `lif`: neurons over time, whose memory is read once and written once.
//
// A block of neurons walks through all steps, its membranes in the first-level cache. The backward
// pass walks forward first, to compute the membranes again.
#include <algorithm>

#include "buffer.h"
#include "export.h"
#include "neuron.h"
#include "number.h"
#include "parallel.h"
#include "stream.h"
#include "surrogate.h"

namespace {

// Neurons at a time: few, so that the processor sees each step as one stream to fetch ahead.
template <class Stored>
constexpr int64_t BLOCK = 512 / sizeof(Stored);

template <class Neuron, class Real, class Stored>
void step_again(const Neuron neuron, const Stored* __restrict x, Real* __restrict v,
                Real* __restrict h, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    h[i] = neuron.charge(v[i], widen(x[i]));
    v[i] = neuron.reset(h[i], neuron.fires(h[i]));
  }
}

template <class Neuron, class Slope, class Real, class Stored>
void step_back(const Neuron neuron, const Slope slope, const Stored* __restrict grad_spikes,
               const Real* __restrict h, Real* __restrict grad_v, Stored* __restrict grad_x,
               int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Real grad_h = neuron.grad_h(h[i], neuron.fires(h[i]), slope(h[i] - neuron.threshold),
                                      widen(grad_spikes[i]), grad_v[i]);
    grad_v[i] = grad_h * neuron.decay;
    grad_x[i] = narrow<Stored>(neuron.grad_x(grad_h));
  }
}

template <class Stored, class Neuron>
int forward(const Neuron& neuron, int64_t T, int64_t neurons, const Stored* x,
            const Wide<Stored>* v0, Stored* spikes, Wide<Stored>* v_end) {
  const bool large = is_large<Stored>(T * neurons);
  constexpr int64_t size = BLOCK<Stored>;
  const int64_t blocks = (neurons + size - 1) / size;
  return parallel_for(blocks, grain(T * size), [=](int64_t begin, int64_t end) {
    alignas(64) Wide<Stored> v[size];
    alignas(64) Stored fired[size];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * size, count = std::min(size, neurons - first);
      start(v, v0 ? v0 + first : nullptr, neuron.rest, count);
      for (int64_t t = 0; t < T; ++t) {
        step(neuron, x + t * neurons + first, v, fired, count);
        store(spikes + t * neurons + first, fired, count, large);
      }
      std::copy_n(v, count, v_end + first);
    }
  });
}

template <class Stored, class Neuron, class Slope>
int backward(const Neuron& neuron, const Slope& slope, int64_t T, int64_t neurons,
             const Stored* grad_spikes, const Wide<Stored>* grad_v_end, const Stored* x,
             const Wide<Stored>* v0, Stored* grad_x, Wide<Stored>* grad_v0) {
  const bool large = is_large<Stored>(T * neurons);
  constexpr int64_t size = BLOCK<Stored>;
  const int64_t blocks = (neurons + size - 1) / size;
  return parallel_for(blocks, grain(T * size), [=](int64_t begin, int64_t end) {
    alignas(64) Wide<Stored> v[size];
    alignas(64) Stored grads[size];
    Buffer<Wide<Stored>> h(T * size);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * size, count = std::min(size, neurons - first);
      start(v, v0 ? v0 + first : nullptr, neuron.rest, count);
      for (int64_t t = 0; t < T; ++t)
        step_again(neuron, x + t * neurons + first, v, &h[t * size], count);
      Wide<Stored>* grad_v = v;
      start<Wide<Stored>>(grad_v, grad_v_end ? grad_v_end + first : nullptr, 0, count);
      for (int64_t t = T - 1; t >= 0; --t) {
        step_back(neuron, slope, grad_spikes + t * neurons + first, &h[t * size], grad_v, grads,
                  count);
        store(grad_x + t * neurons + first, grads, count, large);
      }
      std::copy_n(grad_v, count, grad_v0 + first);
    }
  });
}

}  // namespace

EXPORT int lif_forward(int32_t dtype, const NeuronOptions* options, int64_t T, int64_t neurons,
                       const void* x, const void* v0, void* spikes, void* v_end) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return with_neuron<Real>(*options, [&](const auto& neuron) {
      return forward(neuron, T, neurons, static_cast<const Stored*>(x),
                     static_cast<const Real*>(v0), static_cast<Stored*>(spikes),
                     static_cast<Real*>(v_end));
    });
  });
}

EXPORT int lif_backward(int32_t dtype, const NeuronOptions* options, int64_t T, int64_t neurons,
                        const void* grad_spikes, const void* grad_v, const void* x, const void* v0,
                        void* grad_x, void* grad_v0) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return with_neuron<Real>(*options, [&](const auto& neuron) {
      return with_surrogate<Real>(options->surrogate, options->alpha, [&](const auto& slope) {
        return backward(neuron, slope, T, neurons, static_cast<const Stored*>(grad_spikes),
                        static_cast<const Real*>(grad_v), static_cast<const Stored*>(x),
                        static_cast<const Real*>(v0), static_cast<Stored*>(grad_x),
                        static_cast<Real*>(grad_v0));
      });
    });
  });
}
