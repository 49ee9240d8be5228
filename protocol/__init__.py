"""The only vocabulary that server and client share: records, packing, site cards, tables."""
