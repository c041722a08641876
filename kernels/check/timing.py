"""Times of what was recorded."""

import statistics

import torch


def replays_us(graph, count):
    """Median time of so many replays of a graph, after one that does not count."""
    graph.replay()
    times = []
    for _ in range(count):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return statistics.median(times)
