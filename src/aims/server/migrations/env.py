"""Run revisions on the connection that ``aims.server.database`` gives."""

from alembic import context

from aims.server.database import all_tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=all_tables(),
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
