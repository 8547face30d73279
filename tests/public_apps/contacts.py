"""The application that the documentation of Flask-AppBuilder begins with, with an audit trail.

Users, roles, pages and REST routes are that package's; what is said to the trail is said here.
"""

from typing import Any

from flask import Flask
from flask_appbuilder import AppBuilder, Model, ModelRestApi, ModelView
from flask_appbuilder.models.sqla.interface import SQLAInterface
from flask_appbuilder.security.sqla.manager import SecurityManager
from flask_login import current_user
from flask_sqlalchemy import SQLAlchemy
from pydantic import BaseModel
from sqlalchemy import Column, ForeignKey, Integer, String
from sqlalchemy.orm import relationship

from pgaudit_ctx import audit_context, bind_context
from pgaudit_ctx.integrations.flask import PgAuditCtx


class Group(Model):
    __tablename__ = "contact_group"

    id = Column(Integer, primary_key=True)
    name = Column(String(50), unique=True, nullable=False)

    def __repr__(self) -> str:
        return self.name


class Contact(Model):
    __tablename__ = "contact"

    id = Column(Integer, primary_key=True)
    name = Column(String(150), nullable=False)
    group_id = Column(Integer, ForeignKey(Group.id))
    group = relationship(Group)

    def __repr__(self) -> str:
        return self.name


class WithUser(BaseModel):
    """What each write has to say."""

    user: str


class Contacts(ModelView):
    datamodel = SQLAInterface(Contact)
    add_columns = edit_columns = ["name", "group"]


class ContactGroups(ModelView):
    datamodel = SQLAInterface(Group)
    add_columns = edit_columns = ["name"]


class ContactApi(ModelRestApi):
    resource_name = "contact"
    datamodel = SQLAInterface(Contact)
    add_columns = edit_columns = ["name", "group"]


class Told(SecurityManager):
    """Tells who it has recognised, by token or by password; who has logged in is told below."""

    def load_user_jwt(self, _jwt_header: Any, jwt_data: Any) -> Any:
        user = super().load_user_jwt(_jwt_header, jwt_data)
        if user is not None:
            bind_context(user=user.username)
        return user

    def update_user_auth_stat(self, user: Any, success: bool = True) -> None:
        # Whoever mistypes a password may be anybody, so they are no user yet.
        who = user.username if success else "nobody"
        with audit_context(user=who, reason="login" if success else "login failed"):
            super().update_user_auth_stat(user, success)


def create_app(url: str) -> Flask:
    app = Flask("contacts")
    app.config.update(
        SECRET_KEY="of no worth, for tests only: 32 bytes",
        JWT_SECRET_KEY="of no worth, for tests only: 32 bytes",
        SQLALCHEMY_DATABASE_URI=url,
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 2, "max_overflow": 0},
        WTF_CSRF_ENABLED=False,
        FAB_ADD_SECURITY_API=True,
        FAB_SECURITY_MANAGER_CLASS=f"{__name__}.Told",
    )
    database = SQLAlchemy(app, metadata=Model.metadata)
    PgAuditCtx(app, require_context=True, context_model=WithUser)

    @app.before_request
    def tell_user() -> None:
        if current_user.is_authenticated:
            bind_context(user=current_user.username)

    with app.app_context(), audit_context(user="system", reason="start"):
        # At its start it writes which permissions there are.
        builder = AppBuilder(app, database.session)
        builder.add_view(ContactGroups, "Contact groups")
        builder.add_view(Contacts, "Contacts")
        builder.add_api(ContactApi)
        database.session.remove()
    return app
