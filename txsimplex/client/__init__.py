"""Clients of the network's servers, on Twisted endpoints: `txsimplex.client.smp` for relays."""
