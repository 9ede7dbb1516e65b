"""SwinIR's own C++ for float32 on a CPU."""
