"""Vicuna QA: 80 open questions, answers of two models compared by a judge (FastChat's two protocols) or by people.

Questions, judge prompts and reference answers are read from the user's own copy of FastChat's data (Apache-2.0).
"""
