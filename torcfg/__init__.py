"""Onion services of relays: keys, publishing, client authorisation, and a tor of one's own.

Knows neither relay: what is published is a port and where its connections go.
"""
