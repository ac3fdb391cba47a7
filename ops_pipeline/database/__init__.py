"""Access to the operations database: engine, types, transactions, migrations.

Everything in which PostgreSQL and SQLite differ lives in this package; the domains write each query once.
"""
