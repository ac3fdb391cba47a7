"""Virtualisation: the status of machines, GPUs and network filters, on libvirt."""
