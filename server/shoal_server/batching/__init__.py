"""From waiting items to batches: admission, queue, policy, cost model, batcher."""
