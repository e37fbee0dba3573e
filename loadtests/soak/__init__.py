"""`make soak`: many callers, while somebody changes everything that can be changed."""
