-- MLflow keeps users and permissions in a database of their own.
CREATE DATABASE mlflow_auth;
