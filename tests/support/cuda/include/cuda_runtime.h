#pragma once

#include "tests/support/cuda/language.h"
#include "tests/support/cuda/runtime_api.h"
