"""The console report of a comparison, in the form users know: numbered sections, summary, cost analysis."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.core.console import RULE, duration, heading, say
from fl.core.errors import counted
from fl.core.units import MIB

NAMED = 3
"""Of the tensors that stay FP32; the JSON has them all."""


def opening(model_path: Path, output_dir: Path, num_parameters: int) -> None:
    """Prints what goes in, where results go, and the theoretical sizes."""
    heading("POST-TRAINING QUANTIZATION COMPARISON")
    say(f"Input model: {model_path}\nOutput directory: {output_dir}\n")
    say(f"Model parameters: {num_parameters:,}")
    for title, bits in (("FP32", 32), ("FP16", 16), ("INT8", 8)):
        say(f"Theoretical {title} size: {num_parameters * bits / 8 / MIB:.2f} MB")


def precision_section(entry: Mapping[str, Any]) -> None:
    """Prints what was measured of one precision, under a heading that is already there."""
    say(f"  Loss: {entry['loss']:.4f}")
    say(f"  Accuracy: {entry['accuracy']:.4f} ({entry['accuracy_percent']:.2f}%)")
    say(f"  Agreement with FP32: {100 * entry['agreement_with_fp32']:.2f}% of predictions")
    say(f"  Time: {entry['inference_ms']:.3f} ms per image (kernels: {entry['kernels']})\n")
    say(f"  Saved: {entry['model_path']}")
    say(f"  File size: {entry['file_size_mb']:.2f} MB ({entry['file_size_bytes']:,} bytes)")


def summary(report: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """Prints the COMPARISON SUMMARY table."""
    heading("COMPARISON SUMMARY")
    say(f"Test set: {report['test_set']['title']}, {counted(report['test_set']['num_images'], 'image')}")
    final = (report["run"] or {}).get("final") or {}
    if "reference_accuracy" in final:
        exact, reference = (f"{100 * final[f'{name}_accuracy']:.2f}%" for name in ("exact", "reference"))
        say(f"Model: the {report['run']['server_model']} one (server's exact {exact}, clients' reference {reference})")
    say()
    wide = max(13, 2 + max(len(title) for title in titles.values()))
    columns = f"{'Precision':<{wide}}{'Accuracy':<12}{'Drop':<11}{'Size (MB)':<12}{'Compression':<14}{'ms/image':<10}"
    say(columns.rstrip() + "\n" + "-" * len(RULE))
    for name, entry in report["precisions"].items():
        accuracy, drop = f"{entry['accuracy_percent']:.2f}%", f"{entry['accuracy_drop_percent']:+.2f}%"
        size, ratio = f"{entry['file_size_mb']:.2f}", f"{entry['compression_ratio']:.2f}x"
        say(f"{titles[name]:<{wide}}{accuracy:<12}{drop:<11}{size:<12}{ratio:<14}{entry['inference_ms']:.3f}")
    for name, reason in report["skipped"].items():
        say(f"{titles[name]:<{wide}}left out: {reason}")
    say("Drop: accuracy minus FP32's, in points (below zero is a loss, above zero a gain)")
    for told, names in _in_float(report["precisions"], titles).items():
        say(f"{names}: {told}")


def _in_float(entries: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, str]:
    """Returns what integer models keep in FP32, a line for the precisions that keep the same."""
    lines: dict[str, list[str]] = {}
    for name, entry in entries.items():
        if kept := entry.get("float_tensors"):
            largest = sorted(kept, key=lambda each: -kept[each])[:NAMED]
            more = f" and {len(kept) - NAMED} more" if len(kept) > NAMED else ""
            told = (
                f"{counted(len(kept), 'tensor')} of {sum(kept.values()):,} bytes stay FP32: {', '.join(largest)}{more}"
            )
            lines.setdefault(told, []).append(titles[name])
    return {told: ", ".join(names) for told, names in lines.items()}


def costs(communication: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """Prints the COMMUNICATION COST ANALYSIS."""
    heading("COMMUNICATION COST ANALYSIS (Theoretical)")
    supposed = communication["assumptions"]
    origin = {"run": "from the run", "options": "from the options", "default": "default"}
    source = origin[supposed["clients_and_rounds_from"]]
    say("Assumptions:")
    clients, rounds = counted(supposed["num_clients"], "client"), counted(supposed["num_rounds"], "round")
    say(f"  - {clients} ({'satellite' if supposed['num_clients'] == 1 else 'satellites'}) per round ({source})")
    say(f"  - {rounds.replace(' ', ' FL ')} ({source})")
    say("  - Each client: downloads + uploads model")
    say(f"  - Cost: ${supposed['cost_per_mb_usd']:g}/MB (MB = 1024² bytes)")
    say("  - Quantized traffic in EVERY round: quantizing a final model alone saves nothing during training")
    for name, cost in communication["precisions"].items():
        say(f"\n{titles[name]}:")
        say(f"  Per round: {cost['per_round_mb']:.2f} MB (${cost['per_round_cost_usd']:.2f})")
        say(f"  Total ({rounds}): {cost['total_mb']:.2f} MB")
        say(f"  Total cost: ${cost['total_cost_usd']:.2f}")
        if name != "fp32":
            say(f"  Savings vs FP32: ${cost['savings_usd']:.2f} ({cost['savings_percent']:.1f}%)")
        satellites = counted(supposed["num_satellites"], "satellite")
        say(f"  Final model sent once to {satellites}: ${cost['deploy_once_cost_usd']:.2f}")
    if communication["scales"]:
        say("\nOther scales, total cost in US$:")
        names = list(communication["precisions"])
        say(f"{'Rounds':>8}{'Clients':>9}" + "".join(f"{titles[name]:>15}" for name in names))
        for scale in communication["scales"]:
            figures = "".join(f"{scale['precisions'][name]['total_cost_usd']:>15,.2f}" for name in names)
            say(f"{scale['num_rounds']:>8}{scale['num_clients']:>9}{figures}")


def show_measured(communication: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """Prints what really travelled while the model was trained, beside the hypothetical costs."""
    told = communication["measured"]
    heading("MEASURED TRAFFIC OF THE RUN")
    if "total_mb" not in told:
        say(told["reason"])
        return
    broadcast, update = told["broadcast_payload_bytes"] / MIB, told["update_payload_bytes"] / MIB
    total = f"{told['total_mb']:.2f} MB (broadcast {broadcast:.2f}, update {update:.2f})"
    say(f"Sent in {counted(told['num_rounds'], 'round')}: {total}")
    if told["compression_ratio"]:
        fewer = f"{told['compression_ratio']:.2f}x fewer than"
        say(f"  {'as many as' if fewer.startswith('1.00x') else fewer} FP32 arrays from the same start")
    if told.get("shared_start_bytes"):
        shared = told["shared_start_bytes"] / MIB
        say(f"  The first model came from the seed: {shared:.2f} MB that FP32 would not send either")
    price = communication["assumptions"]["cost_per_mb_usd"]
    say(f"  Cost at ${price:g}/MB: ${told['total_cost_usd']:.2f}")
    supposed = (f"{titles[name]} ${cost['total_cost_usd']:.2f}" for name, cost in communication["precisions"].items())
    say(f"  Hypothetical, each file in every round: {', '.join(supposed)}")
    for name, link in told["links"].items():
        fp32 = f" (as FP32 ${link['if_fp32']['cost_usd']:,.2f})" if link["if_fp32"] else ""
        say(f"  Modelled over {name}: ${link['cost_usd']:,.2f}{fp32}, {duration(link['total_s'])}")
    if "reason" in told:
        say(f"  note: {told['reason']}")
