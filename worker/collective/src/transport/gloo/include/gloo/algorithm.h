// Stands for Gloo's header of this name; see declarations.h.
#pragma once
#include <gloo/declarations.h>
