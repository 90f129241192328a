// The page /docs: Swagger UI, which can call the node. A key that is pasted stays in this page.
import { show } from "./document.js";

show((spec, place) => {
  window.SwaggerUIBundle({
    spec,
    domNode: place,
    deepLinking: true,
    displayRequestDuration: true,
    persistAuthorization: false,
    validatorUrl: null, // its badge would send the document to another host
  });
});
