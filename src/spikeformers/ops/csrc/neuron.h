// The leaky integrate-and-fire neuron of ops/lif/reference.py, some neurons at one step.
#pragma once

#include <cmath>
#include <cstdint>

#include "four.h"

// As Python hands it over (ops/lif/native.py).
struct NeuronOptions {
  double decay, v_threshold, v_reset, alpha;
  int32_t is_soft, decay_input, strict, detach_reset, surrogate;
};

template <class Real>
struct Neuron {
  using Numbers = Four<Real>;

  Real decay, gain, rest, threshold;
  Mask<Real> decays_input;   // everywhere or nowhere: to choose costs less than to branch
  Real input_gain;           // 1 if the input does not decay
  Real fires_at;             // the lowest membrane that fires
  Real survives, after;      // a fired membrane h becomes survives * h + after;
  Real through_0, through_h;  // by firing it also depends on h: slope * (through_0 + through_h * h)
  bool detaches_reset;       // as if it did not

  explicit Neuron(const NeuronOptions& options)
      : decay(static_cast<Real>(options.decay)),
        gain(1 - decay),
        rest(static_cast<Real>(options.is_soft ? 0 : options.v_reset)),
        threshold(static_cast<Real>(options.v_threshold)),
        decays_input(Numbers(static_cast<Real>(options.decay_input)) >= Numbers(1)),
        input_gain(options.decay_input ? gain : 1),
        fires_at(options.strict ? std::nextafter(threshold, static_cast<Real>(INFINITY))
                                : threshold),
        survives(options.is_soft ? 1 : 0),
        after(options.is_soft ? -threshold : rest),
        through_0(after),
        through_h(survives - 1),
        detaches_reset(options.detach_reset) {}

  Numbers charge(Numbers v, Numbers x) const {
    return choose(decays_input, v + gain * (x - (v - rest)), rest + decay * (v - rest) + x);
  }
  Mask<Real> fires(Numbers h) const { return h >= Numbers(fires_at); }
  Numbers reset(Numbers h, Mask<Real> fired) const {
    return choose(fired, survives * h + after, h);
  }

  // Gradient of h from those of the spike and of the membrane after the reset.
  Numbers grad_h(Numbers h, Mask<Real> fired, Numbers slope, Numbers grad_spike,
                 Numbers grad_v) const {
    Numbers dv_dh = choose(fired, survives, 1);
    if (!detaches_reset) dv_dh = dv_dh + slope * (through_0 + through_h * h);
    return grad_spike * slope + grad_v * dv_dh;
  }
  Numbers grad_x(Numbers grad_h) const { return grad_h * input_gain; }
};
