// Starts Swagger UI on the document of this server.
const description = document.currentScript.dataset;

window.ui = SwaggerUIBundle({
  url: description.document,
  dom_id: "#swagger-ui",
  deepLinking: true,
  filter: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  // No validator on another host.
  validatorUrl: null,
  requestInterceptor: (request) => {
    // Jupyter compares it with its cookie in requests that change something.
    if (request.method !== "GET") request.headers["X-XSRFToken"] = description.xsrf;
    return request;
  },
});
