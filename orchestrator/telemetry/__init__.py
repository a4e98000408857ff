"""Watches an attempt from the supervisor through NVML and the host, and judges what it saw."""
