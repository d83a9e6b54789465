"""What rows say: of the constants of the planner's model (cuda/host/cost.h), and of our speed against cuDNN's."""

import math
import re

from gpu_visit.agenda import ROOT


def model_constants(rows):
    """Each constant of the model that E1 tells: (name, value in cost.h, measured). Other rows are left alone."""
    text = re.search(r"Costs kSm90\{(.*?)\};", (ROOT / "csrc/cuda/host/cost.h").read_text(), re.DOTALL)[1]
    assumed = {name: float(value) for name, value in re.findall(r"\.(\w+) = ([\d.]+),", text)}
    cycles = {row["what"]: row["cycles"] for row in rows if "what" in row and "cycles" in row}
    found = []
    for transport, what in (("cluster", "cluster exchange, GPU full"), ("grid", "grid exchange, sentinel")):
        exchange = [row for row in rows if row.get("what") == what and row["cycles"] > 0]
        if not exchange:
            continue
        most = max(row["ctas"] for row in exchange)
        exchange = sorted((row["bytes"], row["cycles"]) for row in exchange if row["ctas"] == most)
        (few, least), (many, longest) = exchange[0], exchange[-1]
        found.append((f"{transport}_latency", least))
        if longest > least:
            found.append((f"{transport}_bytes", round((many - few) / (longest - least), 1)))
    warps = 2  # of a quarter of the SM: what one waits for alone is twice what each adds
    for name, what, factor in (("mma", "mma bf16, 4 sums", 1), ("mma_latency", "mma bf16, 1 sums", warps)):
        if what in cycles:
            found.append((name, factor * cycles[what]))
    return [(name, assumed[name], value) for name, value in found]


def speedups(rows):
    """The planner's choice against cuDNN, of the rows that have both: (mode, precision, mean, worst, best)."""
    rows = [row for row in rows if row.get("cudnn") and row.get("automatic")]
    found = []
    for mode, precision in dict.fromkeys((row["mode"], row["precision"]) for row in rows):
        ratios = {
            f"H={row['H']} B={row['B']}": row["cudnn"] / row["automatic"]
            for row in rows
            if (row["mode"], row["precision"]) == (mode, precision)
        }
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        worst, best = min(ratios, key=ratios.get), max(ratios, key=ratios.get)
        found.append((mode, precision, f"{mean:.2f}", f"{ratios[worst]:.2f} {worst}", f"{ratios[best]:.2f} {best}"))
    return found
