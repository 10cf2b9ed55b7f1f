// Functions that Python calls: plain C names, visible from outside.
#pragma once

#define EXPORT extern "C" __attribute__((visibility("default")))
