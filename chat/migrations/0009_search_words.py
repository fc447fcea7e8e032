import django.contrib.postgres.indexes
import django.contrib.postgres.search
import django.db.models.functions.text
from django.db import migrations, models


class Migration(migrations.Migration):
    """Words alone are indexed: to look for addresses in what a model says could take Postgres half a minute."""

    dependencies = [
        ("chat", "0008_images"),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name="message",
            name="message_words",
        ),
        migrations.AddIndex(
            model_name="message",
            index=django.contrib.postgres.indexes.GinIndex(
                django.contrib.postgres.search.SearchVector(
                    models.Func(
                        django.db.models.functions.text.Left("text", 50000),
                        models.Value("_~/.@<&:-"),
                        models.Value("         "),
                        function="translate",
                        output_field=models.TextField(),
                    ),
                    config="simple",
                ),
                name="message_words",
            ),
        ),
    ]
