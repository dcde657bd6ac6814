"""What layers know: BiT-C, LASP, linear probes, similarity, gradient norms."""
