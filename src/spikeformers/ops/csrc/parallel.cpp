#include "parallel.h"

#include "export.h"

ParallelFor pool = nullptr;

EXPORT void use_pool(ParallelFor torch_parallel_for) { pool = torch_parallel_for; }
