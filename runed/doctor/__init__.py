"""Looks for what keeps runed from working on this machine, and tells the remedy."""

from runed.doctor.checks import CHECKS, examine
from runed.doctor.finding import Finding, Patient, State

__all__ = ["CHECKS", "Finding", "Patient", "State", "examine"]
