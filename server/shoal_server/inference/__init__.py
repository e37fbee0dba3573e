"""One loaded model: tokenizer, collate, ONNX Runtime session, output transforms."""
