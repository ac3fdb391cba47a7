"""Alembic's entry: runs the migrations on the connection that `database.migrate` has opened and locked."""

from alembic import context

from ops_pipeline.database.migrate import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
