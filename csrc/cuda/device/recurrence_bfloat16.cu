#include "launch_recurrence.cuh"

FUSEDLSTM_COMPILE_RECURRENCE(BFloat16Math)
