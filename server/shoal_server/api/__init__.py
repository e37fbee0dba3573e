"""The faces: gRPC and HTTP. They translate and decide nothing."""
